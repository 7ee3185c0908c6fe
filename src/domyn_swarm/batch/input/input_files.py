"""The files that an input names: a path or URL, a folder, a glob, or brace ranges."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import gzip
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa
from typing_extensions import override

from domyn_swarm.batch.input.file_systems import HTTP, is_there, reaching
from domyn_swarm.errors import InvalidInput
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

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
_JSON = ".json"  # JSON Lines if the file is named; within a folder a manifest, a config, …
_PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_TEXTS = ("csv", "tsv", "jsonl", "txt")
_CACHE = re.compile(r"cache-[0-9a-f]{8,}\w*\.arrow")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)|(\d+)-(\d+)")
_MOST_FILES = 1_000_000
_KNOWN = "Parquet, CSV, TSV, JSON Lines or Arrow"


@dataclass(frozen=True)
class InputFile:
    """One file, on this machine or on a file system of fsspec."""

    path: str
    system: Any = None  # an fsspec file system; None: this machine's
    protocol: str = ""

    @override
    def __str__(self) -> str:
        """As a user would write it."""
        return f"{self.protocol}://{self.path.lstrip('/')}" if self.protocol else self.path

    @property
    def packing(self) -> str | None:
        """Its compression, by its name."""
        return _PACKED.get(PurePosixPath(self.path).suffix.lower())

    @property
    def suffix(self) -> str:
        """The suffix of its content: `.csv` for `in.CSV.gz`."""
        name = PurePosixPath(self.path)
        return (name.with_suffix("") if self.packing else name).suffix.lower()

    @property
    def kind(self) -> str:
        """The kind of its content, by its name: a kind of rows, `txt`, or empty if unknown."""
        kind = {".txt": "txt", _JSON: "jsonl"}.get(self.suffix) or _KINDS.get(self.suffix, "")
        return "" if self.packing and kind not in _TEXTS else kind

    def open(self) -> BinaryIO | pa.NativeFile:
        """The stored bytes.

        Raises:
            OSError: it cannot be opened.
        """
        if self.system is None:
            return Path(self.path).open("rb")
        opened: BinaryIO = self.system.open(self.path, "rb")
        return opened

    def size(self) -> int:
        """The number of stored bytes.

        Raises:
            OSError: the file system does not report it.
        """
        if self.system is None:
            return Path(self.path).stat().st_size
        return int(self.system.size(self.path))

    @contextlib.contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """Its content, decompressed.

        Raises:
            OSError: it cannot be opened.
        """
        with contextlib.closing(self.open()) as file:
            if self.packing is None:
                yield file
            elif self.packing == "gzip":  # Python's: archives may end with zeros
                with gzip.GzipFile(fileobj=file) as content:
                    yield cast("BinaryIO", content)
            else:
                with pa.CompressedInputStream(pa.PythonFile(file, "r"), self.packing) as unpacked:
                    yield unpacked


def files_of(source: str, *, recursive: bool = False) -> list[InputFile]:
    """The files in their order: that of the range, else by name.

    A folder's files are those in it, with `recursive` those in its sub-folders too; skipped files
    are logged.

    Raises:
        InvalidInput: there are none, a file of a range is missing, a link is broken, or they are of
            several kinds.
    """
    exact = _matches(source, recursive)
    files = exact if exact or "{" not in source else _ranged(source, recursive)
    if not files:
        raise InvalidInput(
            f"There is no input at {source}.",
            hint=f"Give a {_KNOWN} file, a folder of such files, a quoted glob, or a range: "
            "'part_{0001..0100}.parquet'.",
        )
    found = {file.kind for file in files}
    if len(found) > 1 or not found <= {*_KINDS.values()}:
        raise InvalidInput(
            f"{source}: inputs are files of one kind: {', '.join([*_KINDS, _JSON])}; text ones may "
            f"end in {', '.join(_PACKED)}.",
            hint="Convert it, or name its files by their kind.",
        )
    return files


def is_read_of(source: str, path: str, *, recursive: bool = False) -> bool:
    """Whether a file at `path`, which need not exist yet, belongs to a folder or glob: see
    `files_of`.
    """
    if "://" not in source and "://" not in path:
        source, path = _followed(source), _followed(path)
    if (inside := path.removeprefix(f"{source.rstrip('/')}/")) != path:
        parts = inside.split("/")
        hidden = any(part.startswith(("_", ".")) for part in parts)
        return not hidden and (recursive or len(parts) == 1)
    if not glob.has_magic(source) or (os.path.exists(source) and "://" not in source):  # noqa: PTH110 - a URL, too
        return False
    if "**" in source:
        return fnmatch.fnmatchcase(path, source.replace("**/", "*"))
    ours, theirs = path.split("/"), source.split("/")
    return len(ours) == len(theirs) and all(map(fnmatch.fnmatchcase, ours, theirs))


def _followed(path: str) -> str:
    """A path with the links of its folders resolved; a file may itself be a link."""
    if os.path.isdir(path):  # noqa: PTH112 - globs are among them
        return os.path.realpath(path)
    folder, name = os.path.split(path.rstrip("/"))
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118 - likewise


def _ranged(source: str, recursive: bool) -> list[InputFile]:
    files: list[InputFile] = []
    missing: list[str] = []
    for name in _expanded(source):
        found = _matches(name, recursive)
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
    """Every name of a pattern with `{0001..0100}`, `{1-9}` or `{a,b}`, in order."""
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


def _matches(source: str, recursive: bool) -> list[InputFile]:
    """The files of one path, folder or glob; empty if there are none."""
    if "://" in source:
        return _found_elsewhere(source, recursive)
    path = Path(source)
    if path.is_dir():
        folder = _Folder(source, recursive)
        inside = sorted(path.rglob("*") if recursive else path.iterdir())
        for one in inside:
            if one.is_dir():
                folder.add_folder(one.relative_to(path).as_posix())
            else:
                name = one.relative_to(path).as_posix()
                if one.is_file() or not one.exists():
                    folder.add(InputFile(str(one)), name, broken=not one.exists())
                else:
                    folder.add_other(name)
        return folder.chosen()
    if path.is_fifo() or path.is_socket():
        raise InvalidInput(
            f"{source} is a pipe, and an input is read more than once.",
            hint="Write it to a file first.",
        )
    if path.exists():
        return [InputFile(source)]
    return [InputFile(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207 - absolute patterns


def _found_elsewhere(source: str, recursive: bool) -> list[InputFile]:
    protocol = source.partition("://")[0]
    with reaching(source) as (system, path):
        if protocol not in HTTP and system.isdir(path):
            folder = _Folder(source, recursive)
            listed = system.find(path, detail=True).values() if recursive else system.ls(path)
            for one in sorted(listed, key=lambda found: str(found["name"])):
                inside = one["name"].rstrip("/").removeprefix(path.rstrip("/")).lstrip("/")
                if one["type"] == "file":
                    folder.add(InputFile(one["name"], system, protocol), inside)
                elif inside:
                    folder.add_folder(inside)
            return folder.chosen()
        if is_there(system, path, protocol):
            return [InputFile(path, system, _protocol_of(path, protocol))]
        names = sorted(system.glob(path)) if glob.has_magic(path) else []
        return [InputFile(str(name), system, protocol) for name in names]


def _protocol_of(path: str, protocol: str) -> str:
    return "" if path.startswith(f"{protocol}://") else protocol


class _Folder:
    """The content of a folder: its rows, and skipped files, which are logged.

    Names that begin with `_` or `.` are ignored: manifests, and files that other programs leave
    beside rows.
    """

    def __init__(self, source: str, recursive: bool) -> None:
        self._source = source
        self._recursive = recursive
        self._files: list[InputFile] = []
        self._folders: list[str] = []
        self._others: list[str] = []
        self._caches: list[str] = []

    def add(self, file: InputFile, inside: str, *, broken: bool = False) -> None:
        """Add a file, by its path in the folder.

        Raises:
            InvalidInput: it is a broken link.
        """
        if any(part.startswith(("_", ".")) for part in inside.split("/")):
            return
        if file.kind not in {*_KINDS.values()} or file.suffix == _JSON:
            self._others.append(inside)
        elif _CACHE.fullmatch(inside.rpartition("/")[2]):
            self._caches.append(inside)
        elif broken:
            raise InvalidInput(
                f"{file} is a link that leads nowhere.", hint="Repair it, or remove it."
            )
        else:
            self._files.append(file)

    def add_other(self, inside: str) -> None:
        """Add a pipe, a socket or a device."""
        self._others.append(inside)

    def add_folder(self, inside: str) -> None:
        """Add a sub-folder."""
        if not self._recursive and not inside.startswith(("_", ".")):
            self._folders.append(inside)

    def chosen(self) -> list[InputFile]:
        """The files in their order; logs one line about the rest."""
        left_out = [
            _named(self._folders, "sub-folders, which --recursive reads"),
            _named(self._others, "files of other kinds"),
            _named(self._caches, "caches of Hugging Face"),
        ]
        if any(left_out):
            _log.warning("%s: left out are %s", self._source, "; ".join(filter(None, left_out)))
        return self._files


def _named(names: Sequence[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} ({', '.join(names[:3])}{more})"
