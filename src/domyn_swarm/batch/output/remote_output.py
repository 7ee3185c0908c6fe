"""Outputs at URLs (`s3://…`): written locally, then uploaded, the manifest last.

A store shows a file once all of it has arrived. A second manifest
(`.<name>.<identity>.manifest.json`) names the files of an upload, so that a run after a kill
recognises its own files.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from typing_extensions import override

from domyn_swarm.batch.input.file_facts import InputFacts
from domyn_swarm.batch.input.file_systems import reaching
from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.batch.output.manifest import MANIFEST_NAME, Manifest, manifest_path
from domyn_swarm.batch.output.output_files import (
    OutputPlace,
    Place,
    Writer,
    is_shard_name,
    is_whole,
)
from domyn_swarm.errors import InvalidInput

_READ_ONLY = ("http", "https")


def _path(url: str) -> str:
    import fsspec

    return str(fsspec.core.strip_protocol(url))


def place_of(
    target: str, *, sharded: bool, writer: Writer, facts: InputFacts | None = None
) -> Place:
    """The destination of an output that users name by `target`; a link to a folder of shards is
    followed. `facts`: recorded facts of existing files.
    """
    known = InputFacts() if facts is None else facts
    if "://" in target:
        return RemotePlace(target, sharded, writer, known)
    path = Path(target)
    return OutputPlace(path.resolve() if sharded else path, sharded, writer, known)


@dataclass(frozen=True)
class RemotePlace(Place):
    """A place on a file system of fsspec."""

    url: str
    sharded: bool
    writer: Writer
    facts: InputFacts = field(default_factory=InputFacts)  # of existing files

    @property
    @override
    def names(self) -> tuple[str, str]:
        path = PurePosixPath(self.url)
        return path.name, MANIFEST_NAME if self.sharded else manifest_path(
            Path(path.name), sharded=False
        ).name

    @property
    def _folder(self) -> str:
        """The URL of the folder of the files."""
        return self.url.rstrip("/") if self.sharded else self.url.rpartition("/")[0]

    @property
    def _pending(self) -> str:
        return f".{self.names[0]}.{self.writer.identity}.manifest.json"

    def _file(self, name: str) -> InputFile:
        with reaching(f"{self._folder}/{name}") as (system, path):
            return InputFile(path, system, self.url.partition("://")[0])

    @override
    def check(self, least_bytes: int = 0) -> None:
        if self.url.partition("://")[0] in _READ_ONLY:
            raise InvalidInput(
                f"{self.url}: nothing can be written there.",
                hint="Give a path, or a URL of a store such as s3://.",
            )
        with reaching(self.url) as (system, _):
            system.invalidate_cache()
            there = self._there(system)
            found = next((one for one in there if not self._wrote(one)), None)
            if found is None:
                if {*there} - {self.names[1]}:  # a manifest alone is not an output
                    self.writer.check_input(self.manifest(), self.url)
                self._try_writing(system)
                return
        manifest = self.manifest()
        known = found == self.names[1] or is_whole(self._file(found), manifest, self.facts)
        raise self.writer.refusal(f"{self._folder}/{found}", manifest if known else None)

    def _there(self, system: Any) -> list[str]:  # noqa: ANN401 - of fsspec
        """The existing names of this job's output, and with shards all names in the folder."""
        folder = _path(self._folder)
        try:
            inside = [PurePosixPath(one).name for one in system.ls(folder, detail=False)]
        except FileNotFoundError:
            return []
        ours = {self._pending, PurePosixPath(folder).name}  # some stores list the folder in itself
        if self.sharded:
            return sorted({*inside} - ours)
        return [name for name in self.names if name in inside]

    def _try_writing(self, system: Any) -> None:  # noqa: ANN401 - of fsspec
        probe = _path(f"{self._folder}/.{secrets.token_hex(8)}.probe")
        with contextlib.suppress(NotImplementedError):  # stores without folders
            system.makedirs(_path(self._folder), exist_ok=True)
        system.pipe_file(probe, b"domyn-swarm can write here\n")
        system.rm_file(probe)

    def _wrote(self, name: str) -> bool:
        if name == self.names[1]:
            manifest = self.manifest()
            ours = manifest is not None and self.writer.owns(manifest.job.identity)
            return ours if self.sharded else manifest is not None
        if self.sharded and not is_shard_name(name):
            return False
        manifests = map(self._read, (self.names[1], self._pending))
        return self.writer.may_replace(self._file(name), manifests, self.facts)

    def _read(self, name: str) -> Manifest | None:
        try:
            with contextlib.closing(self._file(name).open()) as opened:
                return Manifest.model_validate_json(opened.read())
        except (OSError, ValueError):
            return None

    @override
    def manifest(self) -> Manifest | None:
        return self._read(self.names[1])

    @override
    def files(self, manifest: Manifest) -> list[InputFile]:
        return [self._file(file.name) for file in manifest.files]

    @override
    def surplus(self, manifest: Manifest) -> list[str]:
        with reaching(self.url) as (system, _):
            found = {one for one in self._there(system) if one.endswith(".parquet")}
        return sorted(found - {file.name for file in manifest.files}) if self.sharded else []

    @contextlib.contextmanager
    @override
    def stage(self) -> Iterator[Path]:
        """A temporary folder of this machine (`TMPDIR`)."""
        with tempfile.TemporaryDirectory(prefix="domyn-swarm-") as folder:
            yield Path(folder)

    @override
    def put(self, stage: Path) -> None:
        self.check()
        manifest = stage / self.names[1]
        files = sorted(one.name for one in stage.iterdir() if one != manifest)
        with reaching(self.url) as (system, _):

            def send(source: Path, name: str) -> None:
                system.put_file(str(source), _path(f"{self._folder}/{name}"))

            def remove(name: str) -> None:
                system.rm_file(_path(f"{self._folder}/{name}"))

            send(manifest, self._pending)
            for name in files:
                send(stage / name, name)
            if self.sharded:
                for name in {*self._there(system)} - {*files, self.names[1]}:
                    remove(name)
            send(manifest, self.names[1])
            remove(self._pending)
