"""`ChatCompletionJob`: messages (or one prompt) in, the assistant's answer out."""

from __future__ import annotations

from typing import Any

import msgspec

from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.net.errors import BadReply
from domyn_swarm.net.openai import CHAT_PATH


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _ChatCompletion(msgspec.Struct):
    choices: list[_Choice]


_decoder = msgspec.json.Decoder(_ChatCompletion)


class ChatCompletionJob(SwarmJob):
    """One answer to the conversation in the input column (default `messages`).

    The column holds a list of messages, or text, which becomes one user message. `system` is put
    before it. With `parse_reasoning` a second column `reasoning` keeps what a reasoning parser of
    the server set apart.
    """

    input_columns = ("messages",)
    output_schema = {"result": str}
    version = "1"

    def __init__(
        self,
        *,
        system: str | None = None,
        parse_reasoning: bool = False,
        **options: Any,
    ) -> None:
        """Options besides these: those of `SwarmJob`; the rest goes to the requests."""
        self.system = system
        self.parse_reasoning = parse_reasoning
        if parse_reasoning:
            self.output_schema = {"result": str, "reasoning": str}
        super().__init__(**options)

    def described(self) -> dict[str, Any]:
        """See `SwarmJob.described`."""
        return {
            **super().described(),
            "system": self.system,
            "parse_reasoning": self.parse_reasoning,
        }

    async def transform_item(self, item: Any) -> Any:  # noqa: ANN401 - the column's
        """The content of the first choice; with `parse_reasoning` also the reasoning."""
        body = {"model": self.model, "messages": self._messages(item), **self.params}
        reply = await self.client.transport.post(CHAT_PATH, body)
        try:
            message = _decoder.decode(reply).choices[0].message
        except (msgspec.DecodeError, IndexError) as error:
            raise BadReply(f"the reply is not a chat completion: {error}") from error
        if self.parse_reasoning:
            return message.content, message.reasoning_content or message.reasoning
        return message.content

    def _messages(self, item: Any) -> list[Any]:  # noqa: ANN401 - the column's
        if isinstance(item, str):
            messages: list[Any] = [{"role": "user", "content": item}]
        elif isinstance(item, list) and item:
            messages = item
        else:
            raise ValueError(f"messages must be text or a list of messages, not {item!r:.80}")
        if self.system is None:
            return messages
        return [{"role": "system", "content": self.system}, *messages]
