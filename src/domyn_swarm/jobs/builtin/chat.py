"""Chat completions, continuations and vectors: one request a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from domyn_swarm.errors import ConfigError, quantity
from domyn_swarm.jobs.builtin.prompted import PromptedJob
from domyn_swarm.jobs.builtin.responses import (
    Choice,
    Embedding,
    choices,
    continuations,
    decoded,
    embeddings,
    vector,
)
from domyn_swarm.jobs.keywords import PromptKeywords
from domyn_swarm.model import ReplyVerdict
from domyn_swarm.net.errors import NOT_IMPLEMENTED, BackPressure, BadReply, RequestError
from domyn_swarm.net.openai import CHAT_PATH, COMPLETIONS_PATH, EMBEDDINGS_PATH
from domyn_swarm.net.parameters import COMPLETIONS, EMBEDDINGS
from domyn_swarm.net.replies import words_of


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
        body = self.body(columns)
        body["messages"] = self.messages(columns)
        reply = await self.client.transport.post(CHAT_PATH, body)
        if not self.parse_reasoning and (said := words_of(reply)) is not None:
            return said
        message = choices(reply)[0].message
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
        found = continuations(await self.client.transport.post(COMPLETIONS_PATH, body))
        return found[0].text

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


_OF_ALL_TEXTS = (401, 403, 404, 405, NOT_IMPLEMENTED)

_NO_EMBEDDINGS = " (a server of llama.cpp has embeddings with args: --embedding)"


class EmbeddingJob(PromptedJob):
    """The embedding of the text in the input column (default `text`), or of the `prompt`.

    `batch_size` texts go into one request. When one of them makes it fail, whether it is refused,
    breaks the server or has no usable vector, the others do not suffer: the request is halved until
    the one is found. An empty vector is none.
    """

    input_columns = ("text",)
    output_schema = {"embedding": list[float]}
    version = "1"
    request_parameters = EMBEDDINGS

    def __init__(self, *, batch_size: int = 32, **options: Unpack[PromptKeywords]) -> None:
        """Options besides: those of `PromptedJob`; the rest (`dimensions`) goes to the requests."""
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        super().__init__(**options)
        self.rows_per_call = 1 if self.param_columns else batch_size

    async def transform_items(self, items: list[Any]) -> list[Any]:
        """The vectors, or the errors of those that have none."""
        rows = [self.columns_of(item) for item in items]
        answers: list[Any] = [self._text(row) for row in rows]
        at = [index for index, one in enumerate(answers) if isinstance(one, str)]
        body = self.body(rows[0])
        found = await self._embed(body, [answers[index] for index in at])
        for index, answer in zip(at, found, strict=True):
            answers[index] = answer
        return answers

    def _text(self, columns: dict[str, Any]) -> str | ValueError:
        try:
            asked = self.asked(columns)
        except ValueError as error:
            return error
        if isinstance(asked, str) and asked:
            return asked
        return ValueError(f"there is no text to embed: {asked!r:.80}")

    async def _embed(self, body: dict[str, Any], texts: list[str]) -> list[Any]:
        """A vector or an error for each text. What one of them may have caused is asked again in
        halves, until it is alone.
        """
        if not texts:
            return []
        try:
            reply = await self.client.transport.post(EMBEDDINGS_PATH, {**body, "input": texts})
            found = decoded(embeddings, reply).data
            return [_vector(one) for one in _in_order(found, len(texts))]
        except RequestError as error:
            if error.status == NOT_IMPLEMENTED:
                error.message += _NO_EMBEDDINGS
            if len(texts) == 1 or not _may_be_of_one_text(error):
                return [error] * len(texts)
        half = len(texts) // 2
        return [*await self._embed(body, texts[:half]), *await self._embed(body, texts[half:])]


def _may_be_of_one_text(error: RequestError) -> bool:
    """Not what would be the same of any: no right to ask, no such path, a server that is busy."""
    return error.status not in _OF_ALL_TEXTS and not isinstance(error, BackPressure)


def _in_order(found: list[Embedding], texts: int) -> list[Embedding]:
    """The vectors in the order of their texts.

    Raises:
        BadReply: it is not known which is whose.
    """
    if len(found) != texts:
        raise BadReply(
            f"the reply has {quantity(len(found), 'embedding')} for {quantity(texts, 'text')}"
        )
    if all(one.index is None for one in found):
        return found
    placed = {one.index: one for one in found}
    if placed.keys() != set(range(texts)):
        raise BadReply("the reply does not say which embedding is of which text")
    return [placed[at] for at in range(texts)]


def _vector(found: Embedding) -> list[float] | BadReply:
    """Its numbers, or what is wrong with them: that text's error."""
    try:
        numbers = decoded(vector, found.embedding)
    except BadReply as error:
        return error
    if not numbers:
        return BadReply("the embedding is empty")
    if not math.isfinite(sum(numbers)):
        return BadReply("the embedding has numbers that are infinite")
    return numbers
