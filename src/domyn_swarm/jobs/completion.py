"""`CompletionJob`: a prompt in, its continuation out."""

from __future__ import annotations

from typing import Any

import msgspec

from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.net.errors import BadReply
from domyn_swarm.net.openai import COMPLETIONS_PATH


class _Choice(msgspec.Struct):
    text: str


class _Completion(msgspec.Struct):
    choices: list[_Choice]


_decoder = msgspec.json.Decoder(_Completion)


class CompletionJob(SwarmJob):
    """One completion of the text in the input column (default `prompt`)."""

    input_columns = ("prompt",)
    output_schema = {"result": str}
    version = "1"

    async def transform_item(self, item: Any) -> str:  # noqa: ANN401 - the column's
        """The text of the first choice."""
        if not isinstance(item, str):
            raise ValueError(f"the prompt is {type(item).__name__}, not text")
        body = {"model": self.model, "prompt": item, **self.params}
        reply = await self.client.transport.post(COMPLETIONS_PATH, body)
        try:
            return _decoder.decode(reply).choices[0].text
        except (msgspec.DecodeError, IndexError) as error:
            raise BadReply(f"the reply is not a completion: {error}") from error
