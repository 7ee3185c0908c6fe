"""The manifest of an output: `_manifest.json` beside shards, `<name>.manifest.json` beside a file.

It names the job, its input and every file with its checksum, so that `job verify` and other readers
can tell whether the output is complete. It holds no secrets: it travels with the output.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from domyn_swarm import __version__
from domyn_swarm.model import Record, ReplyVerdict
from domyn_swarm.record import Meta, field

MANIFEST_NAME = "_manifest.json"  # readers of a folder of Parquet files skip such names
_SUFFIX = ".manifest.json"
_FILE_NAME = r"^\.*[^/.][^/]*$"  # a name, never a path: only files beside the manifest are read
_SECRET = re.compile(
    r"api[_-]?key|secret|passw|authori[sz]ation|cookie|(?:access|auth|api|hf|bearer)[_-]?token|^token$",
    re.IGNORECASE,
)


class JobFacts(Record):
    """The job that wrote an output, and what its answers depend on."""

    id: str
    name: str
    job_class: str
    identity: str
    identity_fields: dict[str, Any]
    model: str
    revision: str | None


class InputFacts(Record):
    """The input that was read."""

    path: str
    rows: int  # all of them, whatever the limit


class TokenCounts(Record):
    """Of the requests behind the rows' results, from all runs."""

    prompt: int
    completion: int


class ColumnFacts(Record):
    """One column of the output."""

    name: str
    type: str
    note: str | None = None  # why its values are JSON, or text although they are numbers


class OutputFile(Record):
    """One file of the output."""

    name: Annotated[str, Meta(pattern=_FILE_NAME)]
    rows: int
    bytes: int
    sha256: str
    modified_at: datetime | None = None  # by the file system that holds it


class RowCounts(Record):
    """The outcomes of an output's rows."""

    rows: int
    rows_failed: int  # they carry an `_error`
    rows_empty: int  # answered, and every answer column is null
    verdicts: dict[ReplyVerdict, int] = field(default_factory=dict)  # all rows, by verdict
    tokens: TokenCounts


class Manifest(RowCounts):
    """The manifest of one output."""

    schema_version: Literal[1] = 1
    job: JobFacts
    input: InputFacts
    limit: int | None
    output_mode: Literal["append", "replace", "io_only"]
    columns: tuple[ColumnFacts, ...]
    files: tuple[OutputFile, ...]  # in the order of their rows
    versions: dict[str, str]
    created_at: datetime


def modified_at(path: Path) -> datetime:
    """The last change of a file's content, to the microsecond.

    Raises:
        OSError: the file cannot be examined.
    """
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=path.stat().st_mtime_ns // 1000)


def manifest_path(output: Path, *, sharded: bool) -> Path:
    """The path of an output's manifest."""
    return output / MANIFEST_NAME if sharded else output.with_name(f"{output.name}{_SUFFIX}")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file; None if there is none, or it is not a manifest of this program."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def versions() -> dict[str, str]:
    """The versions of the programs that wrote the output."""
    import pyarrow as pa

    return {
        "domyn-swarm": __version__,
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
    }


def without_secrets(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as JSON, with `***` for every value whose name marks it as a secret."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(fields), default=repr))
    return {name: _hidden(name, value) for name, value in plain.items()}


def is_secret(name: str) -> bool:
    """Whether a name marks its value as a secret."""
    return _SECRET.search(name) is not None


def _hidden(name: str, value: Any) -> Any:  # noqa: ANN401 - JSON
    if is_secret(name):
        return "***"
    if isinstance(value, dict):
        return {key: _hidden(key, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_hidden("", inner) for inner in value]
    return value
