"""`BatchFileJob`: files of OpenAI's Batch API, answered by a swarm."""

from __future__ import annotations

from typing import Any, Unpack

import msgspec
from typing_extensions import override

from domyn_swarm.batch.input.request_files import (
    BODY_COLUMN,
    ID_COLUMN,
    REPLY_COLUMN,
    REQUESTS,
    URL_COLUMN,
)
from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.jobs.builtin.prompted import extra_fields
from domyn_swarm.jobs.builtin.responses import decoded, named
from domyn_swarm.jobs.keywords import OutputKeywords
from domyn_swarm.jobs.naming import BODY

_PATHS = "/v1/"


class BatchFileJob(SwarmJob):
    """Sends the requests of an OpenAI Batch file unchanged, and keeps their replies.

    A `.jsonl` input has a request on each line (`custom_id`, `method`, `url`, `body`), a `.jsonl`
    output a reply (`id`, `custom_id`, `response`, `error`), as in
    https://platform.openai.com/docs/guides/batch. Other inputs, and frames, have columns
    `custom_id`, `url` and `body` (an object or JSON text), and are returned with `custom_id` and
    `response`, which is JSON text. Rows are identified by their `custom_id`.

    Verdicts of replies are counted (`job status`, `job failures`); all replies count as answers.

    keep_model: send the model that the request names, instead of the swarm's.

    Other arguments are defaults for the requests.
    """

    input_columns = (URL_COLUMN, BODY_COLUMN)
    output_schema = {REPLY_COLUMN: str}
    id_column = ID_COLUMN
    output_mode = "replace"
    accept = "any"
    lines = REQUESTS
    as_request = True
    version = "1"

    def __init__(self, *, keep_model: bool = False, **options: Unpack[OutputKeywords]) -> None:
        """See the class."""
        super().__init__(**options)
        self.keep_model = keep_model
        extra = extra_fields(self.params.pop(BODY, None))
        self.params = {**self.params, **extra}

    @override
    def described(self) -> dict[str, Any]:
        return {**super().described(), "keep_model": self.keep_model}

    @override
    async def transform_item(self, item: Any) -> str:
        """The reply with its status, as JSON."""
        url, body = self._url(item), self._body(item)
        reply = await self.client.transport.post(url, body)
        request_id = msgspec.json.encode(decoded(named, reply).id or "").decode()
        text = msgspec.json.format(bytes(reply), indent=-1).decode()  # a line has no line breaks
        return f'{{"status_code":200,"request_id":{request_id},"body":{text}}}'

    def _url(self, item: dict[str, Any]) -> str:
        url = item[self.input_columns[0]]
        if not isinstance(url, str) or not url.startswith(_PATHS):
            raise ValueError(f"the url is {url!r:.80} and does not begin with {_PATHS!r}")
        return url

    def _body(self, item: dict[str, Any]) -> dict[str, Any]:
        given = item[self.input_columns[1]]
        body = msgspec.json.decode(given) if isinstance(given, str) else given
        if not isinstance(body, dict):
            raise ValueError(f"the body is {given!r:.80}, not an object")
        if body.get("stream"):
            raise ValueError("a batch has no streams: take 'stream' out of the body")
        named_model = body.get("model") if self.keep_model else None
        return {**self.params, **body, "model": named_model or self.model}
