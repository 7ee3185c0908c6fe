"""Files of OpenAI's Batch API: requests, one a line, and their replies.

The forms are those of https://platform.openai.com/docs/guides/batch. Requests keep their JSON as it
stands: a table's types would not hold the parameters of all lines, and would add nulls to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa

from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.schema import ERROR_COLUMN
from domyn_swarm.batch.text_dataset import TextDataset, numbered_lines
from domyn_swarm.batch.text_forms import JsonLines, canonical, printable
from domyn_swarm.errors import InvalidInput

ID_COLUMN, URL_COLUMN, BODY_COLUMN, REPLY_COLUMN = "custom_id", "url", "body", "response"
_SCHEMA = pa.schema([(name, pa.string()) for name in (ID_COLUMN, URL_COLUMN, BODY_COLUMN)])
_HINT = (
    'Every line is such as {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", '
    '"body": {"messages": [...]}}.'
)
_CHUNK_BYTES = 1 << 20
_encoder = msgspec.json.Encoder(enc_hook=str)


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


class ReplyLines:
    """See `TextForm`: a reply on each line, with `id`, `custom_id`, `response` and `error`.

    A request that the server refused has a `response` with that status, one that got no reply has
    an `error`. Further columns come last.
    """

    def head(self, schema: pa.Schema) -> bytes:  # noqa: ARG002 - it has none
        """See `TextForm`."""
        return b""

    def body(self, batch: pa.RecordBatch) -> bytes:
        """See `TextForm`."""
        rows = [_line(row) for row in printable(batch).to_pylist()]
        return _encoder.encode_lines(rows) if rows else b""

    def read(self, file: BinaryIO, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `TextForm`."""
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        while lines := file.readlines(_CHUNK_BYTES):
            rows = [_row(decode(line)) for line in lines]
            if any(missing := {*names} - {*row} for row in rows):
                raise ValueError(f"a row lacks {', '.join(sorted(missing))}")
            columns = [[canonical(row[name]) for row in rows] for name in names]
            arrays = [pa.array(values, pa.string()) for values in columns]
            yield pa.RecordBatch.from_arrays(arrays, names=list(names))

    def formed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """See `TextForm`."""
        return JsonLines().formed(batch)


def _line(row: dict[str, Any]) -> dict[str, Any]:
    failure, reply = row.pop(ERROR_COLUMN, None), row.pop(REPLY_COLUMN, None)
    response: Any = None if reply is None else msgspec.Raw(reply.encode())
    error = None
    if failure is not None and failure["status"] is not None:
        told = {"message": failure["message"], "type": failure["type"], "code": failure["status"]}
        response = {
            "status_code": failure["status"],
            "request_id": "",
            "body": {"error": told},
        }
    elif failure is not None:
        error = {"code": failure["type"], "message": failure["message"]}
    custom_id = row.pop(ID_COLUMN, None)
    name = hashlib.blake2b(str(custom_id).encode(), digest_size=12).hexdigest()
    return {
        "id": f"batch_req_{name}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
        **row,
    }


def _row(line: dict[str, Any]) -> dict[str, Any]:
    """The columns that a line was made of, an error as whatever tells of it."""
    reply = line.get("response") or {}
    refused = reply if reply.get("status_code", 200) >= 400 else None
    error = line.get("error") or refused
    return {**line, REPLY_COLUMN: None if error else line.get("response"), ERROR_COLUMN: error}
