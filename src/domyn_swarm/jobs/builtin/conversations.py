"""Jobs over whole conversations: answering every turn, translating every message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from typing_extensions import override

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.builtin.prompted import PromptedJob, as_message
from domyn_swarm.jobs.builtin.responses import choices
from domyn_swarm.jobs.keywords import PromptKeywords
from domyn_swarm.net.openai import CHAT_PATH

_ASKING = ("user", "tool")


class MultiTurnChatCompletionJob(PromptedJob):
    """The conversation in the input column (default `messages`) with a reply after each turn.

    The messages keep their order. For each `user` or `tool` message a request is sent with all
    messages up to it, and the reply is inserted after it; column `conversation`. A conversation
    without such a message is a row error, and so is an empty reply or one that calls tools.
    """

    input_columns = ("messages",)
    output_schema: Any = ("conversation",)
    version = "1"

    @override
    async def transform_item(self, item: Any) -> list[Any]:
        """The whole conversation."""
        columns = self.columns_of(item)
        body, turns = self.body(columns), self.messages(columns)
        if not any(_role(one) in _ASKING for one in turns):
            raise ValueError("the conversation has no user or tool message to reply to")
        said: list[Any] = []
        for turn in turns:
            said.append(turn)
            if _role(turn) in _ASKING:
                reply = await self.client.transport.post(CHAT_PATH, {**body, "messages": said})
                said.append({"role": "assistant", "content": _spoken(reply)})
        return said


class MultiTurnTranslationJob(PromptedJob):
    """The conversation in the input column with each message translated, in order.

    Column `translation`: the same messages, `content` in `target_language`. Each request includes
    the last `context_turns` messages with their translations, so that terms stay the same
    throughout. For content in parts the texts are translated separately. Messages of other roles
    than `roles`, and empty ones, are kept unchanged; a conversation without a message of these
    roles is a row error, and so is a message without a role or with other content.
    """

    input_columns = ("messages",)
    output_schema: Any = ("translation",)
    version = "2"

    def __init__(
        self,
        *,
        target_language: str | None = None,
        source_language: str | None = None,
        roles: Sequence[str] = ("system", "user", "assistant"),
        context_turns: int = 6,
        **options: Unpack[PromptKeywords],
    ) -> None:
        """See the class; `system` replaces the default instruction to the translator."""
        self.target_language = target_language
        self.source_language = source_language
        self.roles = (roles,) if isinstance(roles, str) else tuple(roles)
        self.context_turns = context_turns
        super().__init__(**options)

    @override
    def check(self) -> None:
        """Also refuses a job without a language."""
        super().check()
        if not self.target_language:
            raise ConfigError(
                "MultiTurnTranslationJob needs a target_language.",
                hint="""For example --job-kwargs '{"target_language": "Italian"}'.""",
            )
        if not self.roles or not all(isinstance(one, str) for one in self.roles):
            raise ConfigError(
                f"roles of MultiTurnTranslationJob are {self.roles!r}: they name no role.",
                hint='A list of names, such as ["user", "assistant"].',
            )
        if self.context_turns < 0:
            raise ConfigError(
                f"context_turns of MultiTurnTranslationJob is {self.context_turns}.",
                hint="0: each message is translated by itself.",
            )

    @override
    def described(self) -> dict[str, Any]:
        return {
            **super().described(),
            "target_language": self.target_language,
            "source_language": self.source_language,
            "roles": list(self.roles),
            "context_turns": self.context_turns,
        }

    @override
    async def transform_item(self, item: Any) -> list[Any]:
        """The translated conversation."""
        columns = self.columns_of(item)
        body, turns = self.body(columns), self.asked(columns)
        if not isinstance(turns, list) or not turns:
            raise ValueError(f"a conversation is a list of messages, not {turns!r:.80}")
        turns = list(map(as_message, turns))
        self._check_turns(turns)
        instruction = {"role": "system", "content": self._instruction(columns)}
        seen: list[dict[str, Any]] = []

        async def in_language(text: str) -> str:
            if not text.strip():
                return text
            context = seen[-2 * self.context_turns :] if self.context_turns else []
            messages = [instruction, *context, {"role": "user", "content": text}]
            reply = await self.client.transport.post(CHAT_PATH, {**body, "messages": messages})
            answer = _spoken(reply)
            seen.extend([messages[-1], {"role": "assistant", "content": answer}])
            return answer

        translated = []
        for turn in turns:
            content = turn.get("content") if turn["role"] in self.roles else None
            if isinstance(content, str):
                translated.append({**turn, "content": await in_language(content)})
            elif isinstance(content, list):
                parts = [
                    {**part, "text": await in_language(part["text"])} if _is_text(part) else part
                    for part in content
                ]
                translated.append({**turn, "content": parts})
            else:
                translated.append(turn)
        return translated

    def _check_turns(self, turns: list[Any]) -> None:
        for number, turn in enumerate(turns, 1):
            if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
                raise ValueError(f"message {number} of the conversation has no role")
            content = turn.get("content")
            if not (content is None or isinstance(content, str | list)):
                raise ValueError(
                    f"message {number} has neither text nor parts, but {content!r:.80}"
                )
        roles = dict.fromkeys(turn["role"] for turn in turns)
        if not roles.keys() & {*self.roles}:
            raise ValueError(
                f"no message is by {' or '.join(self.roles)}, as `roles` has it, but by "
                f"{', '.join(roles)}"
            )

    def _instruction(self, columns: dict[str, Any]) -> str:
        if self.system is not None:
            return self.system.render(columns)
        source = f" from {self.source_language}" if self.source_language else ""
        return (
            f"Translate each message{source} to {self.target_language}. Answer with the "
            "translation alone. Do not reply to what the message says. Keep its formatting, "
            "names, numbers and code."
        )


def _spoken(reply: bytes | memoryview) -> str:
    """The assistant's message, to be sent on.

    Raises:
        ValueError: the conversation cannot continue with it; a row error.
    """
    message = choices(reply)[0].message
    if message.calls:
        raise ValueError("the model called tools, and no tool runs here: remove tools from the job")
    if not (message.text or "").strip():
        raise ValueError("the model said nothing, and the conversation cannot go on without it")
    return message.text or ""


def _is_text(part: Any) -> bool:  # noqa: ANN401 - a part of a message
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _role(message: Any) -> str | None:  # noqa: ANN401 - a message
    return message.get("role") if isinstance(message, dict) else None
