"""`CompletionJob`: a text in, its continuation out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.prompted import PromptedJob
from domyn_swarm.jobs.replies import completion, decoded
from domyn_swarm.model import ReplyVerdict
from domyn_swarm.net.openai import COMPLETIONS_PATH
from domyn_swarm.net.parameters import COMPLETIONS

_CHATS_LIMIT = "max_completion_tokens"


class CompletionJob(PromptedJob):
    """One completion of the text in the input column (default `prompt`), or of the `prompt`."""

    input_columns = ("prompt",)
    output_schema = {"result": str}
    version = "1"
    request_parameters = COMPLETIONS

    async def transform_item(self, item: Any) -> str:  # noqa: ANN401 - the columns'
        """The text of the first choice."""
        columns = self.columns_of(item)
        asked = self.asked(columns)
        if not isinstance(asked, str):
            raise ValueError(f"the prompt is {type(asked).__name__}, not text")
        body = {**self.body(columns), "prompt": asked}
        found = decoded(completion, await self.client.transport.post(COMPLETIONS_PATH, body))
        return found.choices[0].text

    def check(self) -> None:
        """See `SwarmJob.check`: here the token limit has the name that it has for chats."""
        super().check()
        if _CHATS_LIMIT in {*self.params, *self.param_columns}:
            raise ConfigError(
                f"Completions know no {_CHATS_LIMIT}: the server's own limit would cut them.",
                hint="Give max_tokens instead.",
            )

    def remarks(self, verdicts: Mapping[ReplyVerdict, int]) -> list[str]:
        """See `SwarmJob.remarks`."""
        told = super().remarks(verdicts)
        return [f"{one} For completions that is 16 tokens at most servers." for one in told]
