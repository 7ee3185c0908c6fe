"""Whose file this is, wherever it lies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.identity import in_words
from domyn_swarm.batch.input_facts import InputFacts
from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.job_store import input_key
from domyn_swarm.batch.manifest import Manifest, modified_at
from domyn_swarm.errors import OutputExists

IDENTITY_KEY = b"domyn_swarm.identity"


@dataclass(frozen=True)
class Writer:
    """Who writes an output, and what it may replace."""

    identity: str
    input_path: str | None = None  # None: the output is read, not written
    overwrite: bool = False  # what any job wrote, not this one alone
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the identity, without secrets

    def may_replace(
        self, file: InputFile, manifests: Iterable[Manifest | None], facts: InputFacts
    ) -> bool:
        """Whether a file is of this job's output, by its metadata or by one of the manifests."""
        return self.owns(written_identity(file)) or any(
            one is not None and self.owns(one.job.identity) and is_named(file, one, facts)
            for one in manifests
        )

    def owns(self, identity: str | None) -> bool:
        """Whether what a job of that identity wrote may be replaced."""
        return identity is not None and (self.overwrite or identity == self.identity)

    def refusal(self, where: str, there: Manifest | None) -> OutputExists:
        """Why `where` is not replaced; `there` is what it says of itself, None: it is nobody's."""
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
        """Refuse to replace an output that has the rows of another input.

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
    """Whether a file is as the job wrote it whose manifest is there."""
    return there is not None and Writer(there.job.identity).may_replace(file, [there], facts)


def written_identity(file: InputFile) -> str | None:
    """The identity of the job that wrote a Parquet file; None when its metadata tells none."""
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
    """Whether a manifest names the file as it is: with its size, and the moment of its last change.
    Only where that is another one, as after copying, the file is read for its checksum; once, as
    long as it is the same.
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
