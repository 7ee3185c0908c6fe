"""Chat completions, text completions and embeddings: one request per row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from typing_extensions import override

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
from domyn_swarm.net.openai import CHAT_PATH, COMPLETIONS_PATH, EMBEDDINGS_PATH
from domyn_swarm.net.parameters import COMPLETIONS, EMBEDDINGS
from domyn_swarm.net.replies import words_of
from domyn_swarm.net.request_errors import NOT_IMPLEMENTED, BackPressure, BadReply, RequestError


class ChatCompletionJob(PromptedJob):
    """One answer to the conversation in the input column (default `messages`), or to the prompt.

    Tool calls are kept as the message's JSON, a refusal as its text. With `parse_reasoning` a
    second column `reasoning` keeps the reasoning that a parser of the server separated.
    """

    input_columns: Sequence[str] = ("messages",)
    output_schema = {"result": str}
    version = "1"

    def __init__(self, *, parse_reasoning: bool = False, **options: Unpack[PromptKeywords]) -> None:
        """Further options are those of `PromptedJob`; other arguments are parameters of the
        requests.
        """
        self.parse_reasoning = parse_reasoning
        if parse_reasoning:
            self.output_schema = {"result": str, "reasoning": str}
        super().__init__(**options)

    @override
    def described(self) -> dict[str, Any]:
        return {**super().described(), "parse_reasoning": self.parse_reasoning}

    @override
    async def transform_item(self, item: Any) -> Any:
        """The text of the first choice; with `parse_reasoning` also the reasoning."""
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

    @override
    def check(self) -> None:
        """Also refuses a job without a prompt."""
        if self.prompt is None:
            raise ConfigError(
                "TemplateJob needs a prompt.",
                hint="""Give --prompt "… {{ column }} …", or TemplateJob(prompt=...).""",
            )
        super().check()


class MultiChatCompletionJob(PromptedJob):
    """`n` answers to each conversation, as a list in the column `results`.

    If a server returns fewer choices than requested, further requests are sent for the rest; with a
    `seed` each such request has its own.
    """

    input_columns = ("messages",)
    output_schema = {"results": list[str]}
    version = "1"

    def __init__(self, *, n: int = 2, **options: Unpack[PromptKeywords]) -> None:
        """`n` answers. Further options are those of `PromptedJob`; other arguments are parameters
        of the requests.
        """
        if n < 1:
            raise ConfigError(f"n must be at least 1, not {n}.")
        self.n = n
        super().__init__(**options)

    @override
    def described(self) -> dict[str, Any]:
        return {**super().described(), "n": self.n}

    @override
    async def transform_item(self, item: Any) -> list[str | None]:
        """The texts of all choices."""
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
    difficulty of speech recognition tasks", 1977). `bottom50_perplexity` is the same over the least
    probable half of the tokens, `ceil(k / 2)` of them: it shows a few doubtful places that the mean
    over a long answer hides.
    """

    input_columns = ("messages",)
    output_schema = {"text": str, "perplexity": float, "bottom50_perplexity": float}
    version = "1"

    @override
    async def transform_item(self, item: Any) -> tuple[str | None, float, float]:
        """The text of the first choice, and its perplexities."""
        columns = self.columns_of(item)
        body = {**self.body(columns), "messages": self.messages(columns), "logprobs": True}
        choice = choices(await self.client.transport.post(CHAT_PATH, body))[0]
        if not choice.message.text:
            raise ValueError("there is no text whose perplexity could be computed")
        logprobs = sorted(_logprobs(choice))
        half = logprobs[: math.ceil(len(logprobs) / 2)]
        return choice.message.answer, perplexity(logprobs), perplexity(half)


def _logprobs(choice: Choice) -> list[float]:
    tokens = None if choice.logprobs is None else choice.logprobs.content
    if not tokens:
        raise BadReply("the reply has no log-probabilities: this server does not report them")
    return [one.logprob for one in tokens]


def perplexity(logprobs: list[float]) -> float:
    """`exp` of the negated mean; infinite if a token had probability 0.

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

    @override
    async def transform_item(self, item: Any) -> str:
        """The text of the first choice."""
        columns = self.columns_of(item)
        asked = self.asked(columns)
        if not isinstance(asked, str):
            raise ValueError(f"the prompt is {type(asked).__name__}, not text")
        body = {**self.body(columns), "prompt": asked}
        found = continuations(await self.client.transport.post(COMPLETIONS_PATH, body))
        return found[0].text

    @override
    def check(self) -> None:
        """Also refuses the token limit under its name for chats."""
        super().check()
        if _CHATS_LIMIT in {*self.params, *self.param_columns}:
            raise ConfigError(
                f"Completions know no {_CHATS_LIMIT}: the server's own limit would cut them.",
                hint="Give max_tokens instead.",
            )

    @override
    def remarks(self, verdicts: Mapping[ReplyVerdict, int]) -> list[str]:
        usual = super().remarks(verdicts)
        return [f"{one} For completions that is 16 tokens at most servers." for one in usual]


_OF_ALL_TEXTS = (401, 403, 404, 405, NOT_IMPLEMENTED)

_NO_EMBEDDINGS = " (a server of llama.cpp has embeddings with args: --embedding)"


class EmbeddingJob(PromptedJob):
    """The embedding of the text in the input column (default `text`), or of the `prompt`.

    A request holds `batch_size` texts. If one of them makes it fail, whether it is refused, breaks
    the server or has no usable vector, the others are not affected: the request is split in halves
    until that text is alone. An empty vector is an error.
    """

    input_columns = ("text",)
    output_schema = {"embedding": list[float]}
    version = "1"
    request_parameters = EMBEDDINGS

    def __init__(self, *, batch_size: int = 32, **options: Unpack[PromptKeywords]) -> None:
        """Further options are those of `PromptedJob`; other arguments (`dimensions`) are parameters
        of the requests.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        super().__init__(**options)
        self.rows_per_call = 1 if self.param_columns else batch_size

    @override
    async def transform_items(self, items: list[Any]) -> list[Any]:
        """The vectors, or the errors of texts without one; one element per item."""
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
        """A vector or an error for each text. After a failure that one text may have caused, halves
        are sent again, until it is alone.
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
    """Whether one of the texts may have caused the error. Not if any text would fail: no
    permission, no such path, a busy server.
    """
    return error.status not in _OF_ALL_TEXTS and not isinstance(error, BackPressure)


def _in_order(found: list[Embedding], texts: int) -> list[Embedding]:
    """The vectors in the order of their texts.

    Raises:
        BadReply: the order is not known.
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
    """The numbers of a vector, or the error of that text."""
    try:
        numbers = decoded(vector, found.embedding)
    except BadReply as error:
        return error
    if not numbers:
        return BadReply("the embedding is empty")
    if not math.isfinite(sum(numbers)):
        return BadReply("the embedding has numbers that are infinite")
    return numbers
