"""`EmbeddingJob`: a text in, its vector out."""

from __future__ import annotations

from typing import Any

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.prompted import PromptedJob
from domyn_swarm.jobs.replies import decoded, embeddings
from domyn_swarm.net.errors import BadReply, RequestError
from domyn_swarm.net.openai import EMBEDDINGS_PATH
from domyn_swarm.net.parameters import EMBEDDINGS


class EmbeddingJob(PromptedJob):
    """The embedding of the text in the input column (default `text`), or of the `prompt`.

    `batch_size` texts go into one request. When the server refuses one of them, the others do not
    suffer: the request is halved until the one is found.
    """

    input_columns = ("text",)
    output_schema = {"embedding": list[float]}
    version = "1"
    request_parameters = EMBEDDINGS

    def __init__(self, *, batch_size: int = 32, **options: Any) -> None:
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
        for index, vector in zip(at, found, strict=True):
            answers[index] = vector
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
        if not texts:
            return []
        try:
            reply = await self.client.transport.post(EMBEDDINGS_PATH, {**body, "input": texts})
        except RequestError as error:
            if error.retryable or len(texts) == 1:
                return [error] * len(texts)
            half = len(texts) // 2
            return [*await self._embed(body, texts[:half]), *await self._embed(body, texts[half:])]
        found = sorted(decoded(embeddings, reply).data, key=lambda one: one.index)
        if len(found) != len(texts):
            raise BadReply(f"the reply has {len(found)} embeddings for {len(texts)} texts")
        return [one.embedding for one in found]
