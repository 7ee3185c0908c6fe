"""Whose file this is, wherever it lies."""

from __future__ import annotations

import contextlib
import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.manifest import Manifest

IDENTITY_KEY = b"domyn_swarm.identity"
_CHUNK_BYTES = 1 << 20


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


def is_named(file: InputFile, manifest: Manifest | None, identity: str) -> bool:
    """Whether a manifest of that job names the file as it is: with its size and checksum."""
    if manifest is None or manifest.job.identity != identity:
        return False
    name = file.path.rpartition("/")[2]
    known = next((one for one in manifest.files if one.name == name), None)
    try:
        return known is not None and size_and_digest(file) == (known.bytes, known.sha256)
    except OSError:
        return False


def size_and_digest(file: InputFile) -> tuple[int, str]:
    """How many bytes a file has, and their SHA-256.

    Raises:
        OSError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with contextlib.closing(file.open()) as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
