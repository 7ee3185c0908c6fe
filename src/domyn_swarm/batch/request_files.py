"""Files of OpenAI's Batch API: requests, one a line.

The form is that of https://platform.openai.com/docs/guides/batch. Requests keep their JSON as it
stands: a table's types would not hold the parameters of all lines, and would add nulls to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import pyarrow as pa

from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.text_dataset import TextDataset, numbered_lines
from domyn_swarm.errors import InvalidInput

ID_COLUMN, URL_COLUMN, BODY_COLUMN, REPLY_COLUMN = "custom_id", "url", "body", "response"
_SCHEMA = pa.schema([(name, pa.string()) for name in (ID_COLUMN, URL_COLUMN, BODY_COLUMN)])
_HINT = (
    'Every line is such as {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", '
    '"body": {"messages": [...]}}.'
)


class _Request(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


def open_requests(files: Sequence[InputFile]) -> TextDataset:
    """Requests, as columns `custom_id`, `url` and `body`, which is JSON text.

    Raises:
        InvalidInput: a line is no request; file and line are named.
    """
    rows = sum(block.num_rows for file in files for block in _blocks(file))
    return TextDataset(files, _SCHEMA, rows, _blocks)


def _blocks(file: InputFile) -> Iterator[pa.RecordBatch]:
    decode = msgspec.json.Decoder(_Request).decode
    for number, lines in numbered_lines(file):
        requests = []
        for at, line in enumerate(lines):
            if not line or line.isspace():
                continue
            try:
                requests.append(_checked(decode(line)))
            except ValueError as error:
                raise InvalidInput(
                    f"{file}, line {number + at}, is no request of a batch: {error}.", hint=_HINT
                ) from error
        if requests:
            yield pa.RecordBatch.from_pylist(requests, _SCHEMA)


def _checked(request: _Request) -> dict[str, str]:
    body = bytes(request.body)
    if request.method != "POST":
        raise ValueError(f"method is {request.method!r}, not 'POST'")
    if not request.url.startswith("/v1/"):
        raise ValueError(f"url is {request.url!r} and does not begin with '/v1/'")
    if not body.lstrip().startswith(b"{"):
        raise ValueError("body is no object")
    return {ID_COLUMN: request.custom_id, URL_COLUMN: request.url, BODY_COLUMN: body.decode()}
