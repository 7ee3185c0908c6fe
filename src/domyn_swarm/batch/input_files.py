"""The files that an input names: a path or URL, a folder, a glob, or brace ranges."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa

from domyn_swarm.batch.file_systems import reaching
from domyn_swarm.errors import InvalidInput

_KINDS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_TEXTS = ("csv", "tsv", "jsonl", "txt")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)|(\d+)-(\d+)")
_MOST_FILES = 1_000_000
_KNOWN = "Parquet, CSV, TSV, JSON Lines or Arrow"


@dataclass(frozen=True)
class InputFile:
    """One file, on this machine or on a file system that fsspec knows."""

    path: str
    system: Any = None  # an fsspec file system; None: this machine's
    protocol: str = ""

    def __str__(self) -> str:
        """As a user would write it."""
        return f"{self.protocol}://{self.path.lstrip('/')}" if self.protocol else self.path

    @property
    def packing(self) -> str | None:
        """How it is compressed, by its name."""
        return _PACKED.get(PurePosixPath(self.path).suffix)

    @property
    def kind(self) -> str:
        """What it holds, by its name: a kind of rows, `txt`, or nothing that is known."""
        name = PurePosixPath(self.path)
        suffix = name.with_suffix("").suffix if self.packing else name.suffix
        kind = "txt" if suffix == ".txt" else _KINDS.get(suffix, "")
        return "" if self.packing and kind not in _TEXTS else kind

    def open(self) -> BinaryIO | pa.NativeFile:
        """The bytes as they lie there.

        Raises:
            OSError: it cannot be opened.
        """
        if self.system is None:
            return Path(self.path).open("rb")
        opened: BinaryIO = self.system.open(self.path, "rb")
        return opened

    def stream(self) -> pa.NativeFile:
        """Its content, decompressed.

        Raises:
            OSError: it cannot be opened.
        """
        file = pa.PythonFile(self.open(), "r")
        return file if self.packing is None else pa.CompressedInputStream(file, self.packing)


def files_of(source: str, *, kinds: Sequence[str] = tuple(_KINDS.values())) -> list[InputFile]:
    """The files in their order: of a range as it says, else by name.

    Raises:
        InvalidInput: there are none, a file of a range is missing, or they are of several kinds.
    """
    exact = _found(source, kinds)
    files = exact if exact or "{" not in source else _ranged(source, kinds)
    if not files:
        raise InvalidInput(
            f"There is no input at {source}.",
            hint=f"Give a {_KNOWN} file, a folder of such files, a quoted glob, or a range: "
            "'part_{0001..0100}.parquet'.",
        )
    found = {file.kind for file in files}
    if len(found) > 1 or not found <= set(kinds):
        raise InvalidInput(
            f"{source}: inputs are files of one kind: {', '.join(_KINDS)}; text ones may end in "
            f"{', '.join(_PACKED)}.",
            hint="Convert it, or name its files by their kind.",
        )
    return files


def _ranged(source: str, kinds: Sequence[str]) -> list[InputFile]:
    files: list[InputFile] = []
    missing: list[str] = []
    for name in _expanded(source):
        found = _found(name, kinds)
        if not found and not glob.has_magic(name):
            missing.append(name)
        files += found
    if files and missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InvalidInput(
            f"Files of {source} are missing: {', '.join(missing[:3])}{more}.",
            hint="A range names every file that has to be there; a glob (*) takes those that are.",
        )
    return files


def _expanded(source: str) -> list[str]:
    """Every name that a pattern with `{0001..0100}`, `{1-9}` or `{a,b}` stands for, in order."""
    names = list(islice(_names(source), _MOST_FILES + 1))
    if len(names) > _MOST_FILES:
        raise InvalidInput(f"{source} names more than {_MOST_FILES:,} files.")
    return names


def _names(source: str) -> Iterator[str]:
    match = _BRACES.search(source)
    if match is None:
        yield source
        return
    for choice in _choices(match[1]):
        for rest in _names(source[match.end() :]):
            yield source[: match.start()] + choice + rest


def _choices(inside: str) -> Iterator[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        yield from inside.split(",")
        return
    first, last = (match[1], match[2]) if match[1] else (match[3], match[4])
    padded = len(first) if first.startswith("0") or len(first) == len(last) else 0
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        yield str(number).zfill(padded)


def _found(source: str, kinds: Sequence[str]) -> list[InputFile]:
    """What one path, folder or glob stands for; nothing where there is nothing."""
    if "://" in source:
        return _found_elsewhere(source, kinds)
    path = Path(source)
    if path.is_dir():
        inside = [InputFile(str(one)) for one in sorted(path.iterdir()) if one.is_file()]
        return [one for one in inside if _counts(one, kinds)]
    if path.exists():
        return [InputFile(source)]
    return [InputFile(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207 - absolute patterns


def _found_elsewhere(source: str, kinds: Sequence[str]) -> list[InputFile]:
    protocol = source.partition("://")[0]
    with reaching(source) as (system, path):
        if protocol not in {"http", "https"} and system.isdir(path):
            names = sorted(one["name"] for one in system.ls(path) if one["type"] == "file")
            inside = [InputFile(name, system, protocol) for name in names]
            return [one for one in inside if _counts(one, kinds)]
        if system.exists(path):
            return [InputFile(path, system, _protocol_of(path, protocol))]
        names = sorted(system.glob(path)) if glob.has_magic(path) else []
        return [InputFile(str(name), system, protocol) for name in names]


def _protocol_of(path: str, protocol: str) -> str:
    return "" if path.startswith(f"{protocol}://") else protocol


def _counts(file: InputFile, kinds: Sequence[str]) -> bool:
    """Whether a file of a folder is one of its rows: not a manifest, nor another's leavings."""
    return file.kind in kinds and not PurePosixPath(file.path).name.startswith(("_", "."))
