"""Jobs over whole conversations: answering every turn, translating every message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.prompted import PromptedJob
from domyn_swarm.jobs.replies import choices
from domyn_swarm.net.openai import CHAT_PATH

_ASKING = ("user", "tool")


class MultiTurnChatCompletionJob(PromptedJob):
    """The conversation in the input column (default `messages`) with a reply after each turn.

    The messages keep their order. After each `user` or `tool` message the model is asked with all
    that stands before, and its reply is put there; column `conversation`. A conversation without
    such a message is a row error, and so is one in which the model says nothing or calls tools.
    """

    input_columns = ("messages",)
    output_schema: Any = ("conversation",)
    version = "1"

    async def transform_item(self, item: Any) -> list[Any]:  # noqa: ANN401 - the columns'
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

    Column `translation`: the same messages, `content` in `target_language`. The translator sees
    the last `context_turns` messages with their translations, so that words stay the same
    throughout. Messages of other roles than `roles`, and empty ones, are kept as they are.
    """

    input_columns = ("messages",)
    output_schema: Any = ("translation",)
    version = "1"

    def __init__(
        self,
        *,
        target_language: str | None = None,
        source_language: str | None = None,
        roles: Sequence[str] = ("system", "user", "assistant"),
        context_turns: int = 6,
        **options: Any,
    ) -> None:
        """See the class; `system` replaces our instruction to the translator."""
        self.target_language = target_language
        self.source_language = source_language
        self.roles = tuple(roles)
        self.context_turns = context_turns
        super().__init__(**options)

    def check(self) -> None:
        """See `SwarmJob.check`: here the language is missing."""
        super().check()
        if not self.target_language:
            raise ConfigError(
                "MultiTurnTranslationJob needs a target_language.",
                hint="""For example --job-kwargs '{"target_language": "Italian"}'.""",
            )

    def described(self) -> dict[str, Any]:
        """See `SwarmJob.described`."""
        return {
            **super().described(),
            "target_language": self.target_language,
            "source_language": self.source_language,
            "roles": list(self.roles),
            "context_turns": self.context_turns,
        }

    async def transform_item(self, item: Any) -> list[Any]:  # noqa: ANN401 - the columns'
        """The translated conversation."""
        columns = self.columns_of(item)
        body, turns = self.body(columns), self.asked(columns)
        if not isinstance(turns, list) or not turns:
            raise ValueError(f"a conversation is a list of messages, not {turns!r:.80}")
        instruction = {"role": "system", "content": self._instruction(columns)}
        seen: list[dict[str, Any]] = []
        translated = []
        for turn in turns:
            text = turn.get("content") if isinstance(turn, dict) else None
            if _role(turn) not in self.roles or not isinstance(text, str) or not text.strip():
                translated.append(turn)
                continue
            context = seen[-2 * self.context_turns :] if self.context_turns else []
            messages = [instruction, *context, {"role": "user", "content": text}]
            reply = await self.client.transport.post(CHAT_PATH, {**body, "messages": messages})
            answer = _spoken(reply)
            seen += [messages[-1], {"role": "assistant", "content": answer}]
            translated.append({**turn, "content": answer})
        return translated

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
    """What the assistant said, to be sent on.

    Raises:
        ValueError: nothing that a conversation can go on with; a row error.
    """
    message = choices(reply)[0].message
    if message.calls:
        raise ValueError("the model called tools, which nobody answers: take tools out of the job")
    if not (message.text or "").strip():
        raise ValueError("the model said nothing, and the conversation cannot go on without it")
    return message.text or ""


def _role(message: Any) -> str | None:  # noqa: ANN401 - a message
    return message.get("role") if isinstance(message, dict) else None
