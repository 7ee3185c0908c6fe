"""Whose file this is, wherever it lies."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.input_facts import InputFacts
from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.manifest import Manifest, modified_at

IDENTITY_KEY = b"domyn_swarm.identity"


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


def is_named(file: InputFile, manifest: Manifest | None, identity: str, facts: InputFacts) -> bool:
    """Whether a manifest of that job names the file as it is: with its size, and the moment of its
    last change. Only where that is another one, as after copying, the file is read for its
    checksum; once, as long as it is the same.
    """
    if manifest is None or manifest.job.identity != identity:
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
