"""Chat completions: one answer a row, several, or one with its perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.keywords import PromptKeywords
from domyn_swarm.jobs.prompted import PromptedJob
from domyn_swarm.jobs.replies import Choice, choices
from domyn_swarm.net.errors import BadReply
from domyn_swarm.net.openai import CHAT_PATH


class ChatCompletionJob(PromptedJob):
    """One answer to the conversation in the input column (default `messages`), or to the prompt.

    Calls of tools are kept as the message's JSON, a refusal as its words. With `parse_reasoning` a
    second column `reasoning` keeps what a reasoning parser of the server set apart.
    """

    input_columns: Sequence[str] = ("messages",)
    output_schema = {"result": str}
    version = "1"

    def __init__(self, *, parse_reasoning: bool = False, **options: Unpack[PromptKeywords]) -> None:
        """Options besides: those of `PromptedJob`; the rest goes to the requests."""
        self.parse_reasoning = parse_reasoning
        if parse_reasoning:
            self.output_schema = {"result": str, "reasoning": str}
        super().__init__(**options)

    def described(self) -> dict[str, Any]:
        """See `SwarmJob.described`."""
        return {**super().described(), "parse_reasoning": self.parse_reasoning}

    async def transform_item(self, item: Any) -> Any:  # noqa: ANN401 - the columns'
        """What the first choice says; with `parse_reasoning` also the reasoning."""
        columns = self.columns_of(item)
        body = {**self.body(columns), "messages": self.messages(columns)}
        message = choices(await self.client.transport.post(CHAT_PATH, body))[0].message
        return (message.answer, message.thoughts) if self.parse_reasoning else message.answer


class TemplateJob(ChatCompletionJob):
    """One answer to a prompt over the row's columns: `TemplateJob(prompt="Name {{ thing }}")`."""

    input_columns = ()
    version = "1"

    def check(self) -> None:
        """See `SwarmJob.check`: here the prompt is missing."""
        if self.prompt is None:
            raise ConfigError(
                "TemplateJob needs a prompt.",
                hint="""Give --prompt "… {{ column }} …", or TemplateJob(prompt=...).""",
            )
        super().check()


class MultiChatCompletionJob(PromptedJob):
    """`n` answers to each conversation, as a list in the column `results`.

    Servers that answer with fewer choices than asked for are asked again for the rest; with a
    `seed` each such request has its own.
    """

    input_columns = ("messages",)
    output_schema = {"results": list[str]}
    version = "1"

    def __init__(self, *, n: int = 2, **options: Unpack[PromptKeywords]) -> None:
        """`n` answers; options besides: those of `PromptedJob`; the rest goes to the requests."""
        if n < 1:
            raise ConfigError(f"n must be at least 1, not {n}.")
        self.n = n
        super().__init__(**options)

    def described(self) -> dict[str, Any]:
        """See `SwarmJob.described`."""
        return {**super().described(), "n": self.n}

    async def transform_item(self, item: Any) -> list[str | None]:  # noqa: ANN401 - the columns'
        """What all choices say."""
        columns = self.columns_of(item)
        body = {**self.body(columns), "messages": self.messages(columns)}
        answers: list[str | None] = []
        while len(answers) < self.n:
            left = self.n - len(answers)
            again = {"seed": body["seed"] + len(answers)} if answers and "seed" in body else {}
            reply = await self.client.transport.post(CHAT_PATH, {**body, "n": left, **again})
            answers += [one.message.answer for one in choices(reply)[:left]]
        return answers


class ChatCompletionPerplexityJob(PromptedJob):
    """One answer with its perplexity: columns `text`, `perplexity`, `bottom50_perplexity`.

    With `l_1 … l_k` the natural logarithms of the probabilities that the model gave the `k` tokens
    it generated, the perplexity is `exp(-(l_1 + … + l_k) / k)`: two to the power of the
    cross-entropy in bits (Jelinek, Mercer, Bahl and Baker, "Perplexity - a measure of the
    difficulty of speech recognition tasks", 1977). `bottom50_perplexity` is the same over the
    least probable half of the tokens, `ceil(k / 2)` of them: it shows a few doubtful places that
    the mean over a long answer hides.
    """

    input_columns = ("messages",)
    output_schema = {"text": str, "perplexity": float, "bottom50_perplexity": float}
    version = "1"

    async def transform_item(self, item: Any) -> tuple[str | None, float, float]:  # noqa: ANN401 - the columns'
        """What the first choice says, and its perplexities."""
        columns = self.columns_of(item)
        body = {**self.body(columns), "messages": self.messages(columns), "logprobs": True}
        choice = choices(await self.client.transport.post(CHAT_PATH, body))[0]
        if not choice.message.text:
            raise ValueError("there is no text whose perplexity could be told")
        logprobs = sorted(_logprobs(choice))
        half = logprobs[: math.ceil(len(logprobs) / 2)]
        return choice.message.answer, perplexity(logprobs), perplexity(half)


def _logprobs(choice: Choice) -> list[float]:
    tokens = None if choice.logprobs is None else choice.logprobs.content
    if not tokens:
        raise BadReply("the reply has no log-probabilities: this server does not tell them")
    return [one.logprob for one in tokens]


def perplexity(logprobs: list[float]) -> float:
    """`exp` of the negated mean; infinite where a token was impossible.

    Args:
        logprobs: natural logarithms of probabilities, at least one.
    """
    try:
        return math.exp(-math.fsum(logprobs) / len(logprobs))
    except OverflowError:
        return math.inf
