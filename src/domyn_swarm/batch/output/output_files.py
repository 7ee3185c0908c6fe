"""Files of an output: written in a staging folder next to it, then moved into place whole; and the
ownership of existing files.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from domyn_swarm.batch.checkpoint.job_store import input_key
from domyn_swarm.batch.checkpoint.request_identity import in_words
from domyn_swarm.batch.durable_files import sync_folder, try_writing
from domyn_swarm.batch.input.file_facts import InputFacts
from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.batch.output.manifest import (
    MANIFEST_NAME,
    Manifest,
    manifest_path,
    modified_at,
    read_manifest,
)
from domyn_swarm.batch.output.part_writer import OpenSink, ParquetSink, TextSink
from domyn_swarm.batch.output.text_forms import FORMS, TextForm
from domyn_swarm.errors import InvalidInput, OutputExists

IDENTITY_KEY = b"domyn_swarm.process_identity"


@dataclass(frozen=True)
class Writer:
    """The job that writes an output, and what it may replace."""

    identity: str
    input_path: str | None = None  # None: the output is read, not written
    overwrite: bool = False  # files of any job, not of this job alone
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the identity, without secrets

    def may_replace(
        self, file: InputFile, manifests: Iterable[Manifest | None], facts: InputFacts
    ) -> bool:
        """Whether a file belongs to this job's output, by its metadata or by one of the
        manifests.
        """
        return self.owns(written_identity(file)) or any(
            one is not None and self.owns(one.job.identity) and is_named(file, one, facts)
            for one in manifests
        )

    def owns(self, identity: str | None) -> bool:
        """Whether the output of a job with that identity may be replaced."""
        return identity is not None and (self.overwrite or identity == self.identity)

    def refusal(self, where: str, there: Manifest | None) -> OutputExists:
        """The reason why `where` is not replaced; `there`: its owner's description, None: it has
        none.
        """
        if there is None:
            return OutputExists(
                f"{where} exists and is not this job's output.",
                hint="Move it away or choose another --output; --overwrite replaces what "
                "another job of domyn-swarm wrote, as it wrote it, and nothing else.",
            )
        differs = in_words(there.job.identity_fields, self.fields)
        if self.input_path and input_key(there.input.path) != input_key(self.input_path):
            differs.insert(0, f"input: {there.input.path} → {self.input_path}")
        what = "; ".join(differs) or "what is kept secret"
        return OutputExists(
            f"{where} has the answers of another job, {there.job.id}. What differs: {what}.",
            hint="Choose another --output, or give --overwrite to replace it.",
        )

    def check_input(self, there: Manifest | None, where: str) -> None:
        """Refuse to replace an output with the rows of another input.

        Raises:
            OutputExists: names that input.
        """
        if there is None or self.overwrite or self.input_path is None:
            return
        if input_key(there.input.path) != input_key(self.input_path):
            raise OutputExists(
                f"{where} has the answers to another input, {there.input.path}.",
                hint="Choose another --output, or give --overwrite to replace it.",
            )


def is_whole(file: InputFile, there: Manifest | None, facts: InputFacts) -> bool:
    """Whether a file is unchanged since the job of this manifest wrote it."""
    return there is not None and Writer(there.job.identity).may_replace(file, [there], facts)


def written_identity(file: InputFile) -> str | None:
    """The identity of the job that wrote a Parquet file; None if its metadata has none."""
    if file.kind != "parquet":
        return None
    try:
        with contextlib.closing(file.open()) as opened:
            metadata = pq.read_metadata(opened).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    found = metadata.get(IDENTITY_KEY)
    return None if found is None else found.decode()


def is_named(file: InputFile, manifest: Manifest | None, facts: InputFacts) -> bool:
    """Whether a manifest names the file in its present state: by its size and its time of change.
    Only if the time differs, as after copying, the file is read for its checksum; once, while it is
    unchanged.
    """
    if manifest is None:
        return False
    name = file.path.rpartition("/")[2]
    known = next((one for one in manifest.files if one.name == name), None)
    try:
        if known is None or file.size() != known.bytes:
            return False
        if file.system is None and modified_at(Path(file.path)) == known.modified_at:
            return True
        return facts.digest(file) == known.sha256
    except OSError:
        return False


SHARD_ROWS = 250_000
"""Rows in each shard of `--shard-output`; the last shard has the rest."""

KIND_OF_SUFFIX = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv"}
_SHARD_NAME = re.compile(r"^part-\d{5,}\.parquet$")


def shard_name(number: int) -> str:
    """The name of a shard; names sort as their rows do."""
    return f"part-{number:05d}.parquet"


def opener_of(kind: str, form: TextForm | None = None) -> OpenSink:
    """The writer for files of a kind; text in the given form, if any."""
    return ParquetSink if kind == "parquet" else functools.partial(TextSink, form or FORMS[kind])


class Place(Protocol):
    """The destination of a job's output: one file, or a folder of shards."""

    @property
    def names(self) -> tuple[str, str]:
        """The file's name, and the manifest's."""

    def check(self, least_bytes: int = 0) -> None:
        """Refuse to replace anything that this job did not write.

        Args:
            least_bytes: the least size of the output.

        Raises:
            OutputExists: names the file that is in the way.
            InvalidInput: the destination is not writable, or has too little room.
        """

    def stage(self) -> contextlib.AbstractContextManager[Path]:
        """A new folder for its files; removed afterwards."""

    def put(self, stage: Path) -> None:
        """Move the staged files into place, the manifest last.

        Raises:
            OutputExists: another program has created a file there meanwhile.
            OSError: it cannot be written.
        """

    def manifest(self) -> Manifest | None:
        """The manifest of the existing output; None: there is none."""

    def files(self, manifest: Manifest) -> list[InputFile]:
        """The files that a manifest names, in the order of their rows."""

    def surplus(self, manifest: Manifest) -> list[str]:
        """Parquet files among the shards that are not in the manifest."""


@dataclass(frozen=True)
class OutputPlace(Place):
    """A place on a file system of this machine."""

    path: Path
    sharded: bool
    writer: Writer
    facts: InputFacts = field(default_factory=InputFacts)  # of existing files

    @property
    @override
    def names(self) -> tuple[str, str]:
        return self.path.name, self._manifest.name

    @property
    def _manifest(self) -> Path:
        return manifest_path(self.path, sharded=self.sharded)

    @override
    def manifest(self) -> Manifest | None:
        return read_manifest(self._manifest)

    @override
    def files(self, manifest: Manifest) -> list[InputFile]:
        folder = self.path if self.sharded else self.path.parent
        return [InputFile(str(folder / file.name)) for file in manifest.files]

    @override
    def surplus(self, manifest: Manifest) -> list[str]:
        known = {file.name for file in manifest.files}
        found = {path.name for path in self.path.glob("*.parquet")} if self.sharded else set()
        return sorted(found - known)

    @override
    def check(self, least_bytes: int = 0) -> None:
        found = self._foreign_shard() if self.sharded else self._foreign_file()
        if found is not None:
            manifest, file = self.manifest(), InputFile(str(found))
            known = found == self._manifest or is_whole(file, manifest, self.facts)
            raise self.writer.refusal(str(found), manifest if known else None)
        if self.path.exists():
            self.writer.check_input(self.manifest(), str(self.path))
        try:
            there = try_writing(self.path.absolute().parent)
            room = shutil.disk_usage(there)
        except OSError as error:
            raise InvalidInput(
                f"The output {self.path} cannot be written: {error.filename}: {error.strerror}.",
                hint="Choose another output, or correct the folder's permissions.",
            ) from error
        if room.total and room.free < least_bytes:  # some file systems do not report it
            raise InvalidInput(
                f"The output {self.path} will have {least_bytes / 1e9:.1f} GB or more, and "
                f"{there} has room for {room.free / 1e9:.1f} GB.",
                hint="Make room, or choose another --output.",
            )

    def _foreign_file(self) -> Path | None:
        if self.path.exists() and not self._wrote(self.path):
            return self.path
        if self._manifest.exists() and read_manifest(self._manifest) is None:
            return self._manifest
        return None

    def _foreign_shard(self) -> Path | None:
        if not self.path.is_dir():
            return self.path if self.path.exists() else None
        return next((one for one in sorted(self.path.iterdir()) if not self._wrote(one)), None)

    def _wrote(self, path: Path) -> bool:
        if self.sharded and path.name == MANIFEST_NAME:
            manifest = read_manifest(path)
            return manifest is not None and self.writer.owns(manifest.job.identity)
        if not path.is_file() or (self.sharded and not is_shard_name(path.name)):
            return False
        manifests = map(read_manifest, self._manifests())
        return self.writer.may_replace(InputFile(str(path)), manifests, self.facts)

    def _manifests(self) -> list[Path]:
        """The manifest in place, and those of interrupted moves."""
        return [self._manifest, *(left / self._manifest.name for left in self._left())]

    def _left(self) -> list[Path]:
        """Staging folders of runs of this job that are active or were killed."""
        prefix = f".{self.path.name}.{self.writer.identity}."
        inside = self.path.parent.iterdir() if self.path.parent.is_dir() else ()
        return [
            one for one in inside if one.name.startswith(prefix) and one.name.endswith(".partial")
        ]

    @contextlib.contextmanager
    @override
    def stage(self) -> Iterator[Path]:
        """Staging folder next to the output. Finishes or removes what a killed run left."""
        parent = self.path.parent
        parent.mkdir(parents=True, exist_ok=True)
        for left in self._left():
            # No other job with these requests writes here now: it was refused when it was
            # submitted.
            self._finish_move(left)
            shutil.rmtree(left)
        if self._aside.exists() and not self.path.exists():
            self._aside.rename(self.path)
        stage = parent / f".{self.path.name}.{self.writer.identity}.{os.getpid()}.partial"
        stage.mkdir()
        try:
            yield stage
        finally:
            if not self._is_half_moved(stage):  # else the next run of this job completes the move
                shutil.rmtree(stage, ignore_errors=True)

    def _is_half_moved(self, stage: Path) -> bool:
        """Whether the output is in place and its manifest is not, which alone identifies the owner
        of text.
        """
        moved = not self.sharded and not (stage / self.path.name).exists()
        return moved and (stage / self._manifest.name).exists()

    def _finish_move(self, stage: Path) -> None:
        """Move the manifest of a file that is in place next to it."""
        waiting = stage / self._manifest.name
        in_place = InputFile(str(self.path))
        manifest = None if self.sharded else read_manifest(waiting)
        if is_named(in_place, manifest, self.facts):
            waiting.replace(self._manifest)

    @property
    def _aside(self) -> Path:
        """The folder of the old shards while the new ones are renamed."""
        return self.path.with_name(f".{self.path.name}.{self.writer.identity}.replaced")

    @override
    def put(self, stage: Path) -> None:
        self.check()
        sync_folder(stage)
        if self.sharded:
            self._swap(stage)
        else:
            (stage / self.path.name).replace(self.path)
            (stage / self._manifest.name).replace(self._manifest)
        sync_folder(self.path.parent)

    def _swap(self, stage: Path) -> None:
        if not self.path.exists():
            stage.rename(self.path)
            return
        if self._aside.exists():  # a run was killed while it removed the replaced shards
            shutil.rmtree(self._aside)
        self.path.rename(self._aside)
        try:
            stage.rename(self.path)
        except BaseException:
            self._aside.rename(self.path)
            raise
        shutil.rmtree(self._aside)


def is_shard_name(name: str) -> bool:
    """Whether a file's name has the form of `shard_name`."""
    return bool(_SHARD_NAME.match(name))
