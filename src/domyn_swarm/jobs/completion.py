"""`CompletionJob`: a text in, its continuation out."""

from __future__ import annotations

from typing import Any

from domyn_swarm.jobs.prompted import PromptedJob
from domyn_swarm.jobs.replies import completion, decoded
from domyn_swarm.net.errors import BadReply
from domyn_swarm.net.openai import COMPLETIONS_PATH
from domyn_swarm.net.parameters import COMPLETIONS


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
        if not found.choices:
            raise BadReply("the reply has no choice")
        return found.choices[0].text
