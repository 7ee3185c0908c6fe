"""Files of OpenAI's Batch API: requests, one a line, and their replies.

The forms are those of https://platform.openai.com/docs/guides/batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa

from domyn_swarm.batch.column_values import array, python_values
from domyn_swarm.batch.input.json_lines import NotAsAgreed
from domyn_swarm.batch.input.opening import LineFiles
from domyn_swarm.batch.outcomes.row_outcomes import ERROR_COLUMN

ID_COLUMN, URL_COLUMN, BODY_COLUMN, REPLY_COLUMN = "custom_id", "url", "body", "response"
_CHUNK_BYTES = 1 << 20
_encoder = msgspec.json.Encoder(enc_hook=str)


class _Request(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


_decode_request = msgspec.json.Decoder(_Request).decode


def _check_request(line: bytes) -> None:
    """Every line is like {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
    "body": {"messages": [...]}}.
    """
    try:
        request = _decode_request(line)
        if request.method != "POST":
            raise ValueError(f"method is {request.method!r}, not 'POST'")
        if not request.url.startswith("/v1/"):
            raise ValueError(f"url is {request.url!r} and does not begin with '/v1/'")
        if not bytes(request.body).lstrip().startswith(b"{"):
            raise ValueError("body is no object")
    except ValueError as error:
        raise NotAsAgreed(f"is no request of a batch: {error}") from error


class ReplyLines:
    """A `TextForm`: a reply on each line, with `id`, `custom_id`, `response` and `error`.

    A request that the server refused has a `response` with that status, one that got no reply has
    an `error`. Further columns come last.
    """

    def head(self, schema: pa.Schema) -> bytes:  # noqa: ARG002 - it has none
        """No header."""
        return b""

    def body(self, batch: pa.RecordBatch) -> bytes:
        """One line of JSON for each row."""
        columns = [python_values(column) for column in batch.columns]
        names = batch.schema.names
        rows = [
            _line(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)
        ]
        return _encoder.encode_lines(rows) if rows else b""

    def read(self, file: BinaryIO, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of a file, as `TextForm.read` has them."""
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        while lines := file.readlines(_CHUNK_BYTES):
            rows = [_row(decode(line)) for line in lines]
            if any(missing := {*names} - {*row} for row in rows):
                raise ValueError(f"a row lacks {', '.join(sorted(missing))}")
            columns = [[_canonical(row[name]) for row in rows] for name in names]
            arrays = [array(values, pa.string()) for values in columns]
            yield pa.RecordBatch.from_arrays(arrays, names=list(names))

    def formed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch as `read` returns it."""
        columns = [map(_canonical, python_values(column)) for column in batch.columns]
        arrays = [array(list(texts), pa.string()) for texts in columns]
        return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


REQUESTS = LineFiles((ID_COLUMN, URL_COLUMN, BODY_COLUMN), _check_request, ReplyLines())
"""The form of such files' lines, and of the replies to them."""


def _canonical(value: Any) -> str | None:  # noqa: ANN401 - JSON
    """A value as text that is the same for equal values; null stays null."""
    return None if value is None else _encoder.encode(value).decode()


def _line(row: dict[str, Any]) -> dict[str, Any]:
    failure, reply = row.pop(ERROR_COLUMN, None), row.pop(REPLY_COLUMN, None)
    response: Any = None if reply is None else msgspec.Raw(reply.encode())
    error = None
    if failure is not None and failure["status"] is not None:
        shown = {"message": failure["message"], "type": failure["type"], "code": failure["status"]}
        response = {
            "status_code": failure["status"],
            "request_id": "",
            "body": {"error": shown},
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
    """The columns from which a line was made; an error is an object."""
    reply = line.get("response") or {}
    refused = reply if reply.get("status_code", 200) >= 400 else None
    error = line.get("error") or refused
    return {**line, REPLY_COLUMN: None if error else line.get("response"), ERROR_COLUMN: error}
