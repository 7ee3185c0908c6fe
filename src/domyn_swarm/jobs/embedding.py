"""`EmbeddingJob`: a text in, its vector out."""

from __future__ import annotations

import math
from typing import Any, Unpack

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.keywords import PromptKeywords
from domyn_swarm.jobs.prompted import PromptedJob
from domyn_swarm.jobs.replies import Embedding, decoded, embeddings, vector
from domyn_swarm.net.errors import NOT_IMPLEMENTED, BackPressure, BadReply, RequestError
from domyn_swarm.net.openai import EMBEDDINGS_PATH
from domyn_swarm.net.parameters import EMBEDDINGS

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
        raise BadReply(f"the reply has {len(found)} embeddings for {texts} texts")
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
