"""The swarms of a home, and how many replicas each wanted over time: kept outside their folders.

The other half of the ledger is written by their programs inside the folders: `ledger_files`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from domyn_swarm.model import Record, utc_now
from domyn_swarm.paths import SwarmPaths, home, private_dir, private_file, write_private


class SwarmEntry(Record):
    """An existing or former swarm: `swarm.json` in its folder of `ledgers_dir`."""

    schema_version: Literal[1] = 1
    tag: str
    name: str
    backend: str
    user: str  # the user that its processes run as
    swarm_dir: str
    model: str
    gpus_per_replica: int
    created_at: datetime


def ledgers_dir() -> Path:
    """The folder of all ledgers: outside every swarm, so that it outlives them."""
    return home() / "ledger"


def written_folder(paths: SwarmPaths, tag: str) -> Path:
    """The folder that the programs of the swarm of this tag write to."""
    return paths.root / "ledger" / tag


def entry_folder(tag: str) -> Path:
    """The folder of a swarm's entry, which stays when the swarm is over."""
    return ledgers_dir() / tag


def enter(entry: SwarmEntry, replicas: int) -> None:
    """Add the entry of a swarm that is about to be launched with so many replicas.

    Raises:
        OSError: it cannot be written.
    """
    folder = private_dir(entry_folder(entry.tag))
    write_private(folder / "swarm.json", entry.model_dump_json(indent=2))
    want(entry.tag, replicas)


def want(tag: str, replicas: int | Collection[int], at: datetime | None = None) -> None:
    """Record that a swarm wants this number of replicas, or these ones, from now on; 0: it has
    ended. A swarm of an earlier version has no entry, and gets none.

    Raises:
        OSError: it cannot be written.
    """
    note_wanted(entry_folder(tag), replicas, at)


def note_wanted(folder: Path, replicas: int | Collection[int], at: datetime | None = None) -> None:
    """`want` with the folder of the swarm's entry given: for nodes, whose environment may set
    another home.

    Raises:
        OSError: it cannot be written.
    """
    if not folder.is_dir():
        return
    wanted = replicas if isinstance(replicas, int) else sorted(replicas)
    line = {"at": (at or utc_now()).timestamp(), "replicas": wanted}
    with private_file(folder / "wanted.jsonl").open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")


def entries(unread: list[str] | None = None) -> list[SwarmEntry]:
    """Every swarm that was ever entered in this home, the oldest first. For an entry that cannot be
    read, a message is added to `unread`.
    """
    found = []
    try:
        folders = list(ledgers_dir().iterdir())
    except OSError:
        return []
    for folder in folders:
        try:
            text = (folder / "swarm.json").read_text("utf-8")
            found.append(SwarmEntry.model_validate_json(text))
        except (OSError, ValueError) as error:
            if unread is not None and folder.is_dir() and any(folder.iterdir()):
                why = " ".join(str(error).split())
                unread.append(f"{folder / 'swarm.json'} cannot be read: {why[:200]}")
    return sorted(found, key=lambda one: one.created_at)


class _Wanted(msgspec.Struct):
    """A line of `note_wanted`."""

    at: float
    replicas: int | list[int]


def wanted(tag: str, now: float) -> dict[int, list[tuple[float, float]]]:
    """From when until when each replica of a swarm was wanted. Truncated and foreign lines are left
    out.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    lines = _wanted_lines(entry_folder(tag) / "wanted.jsonl")
    ends = [*(line.at for line in lines[1:]), now]
    for line, end in zip(lines, ends, strict=False):
        replicas = line.replicas
        for replica in range(replicas) if isinstance(replicas, int) else replicas:
            spans = found.setdefault(replica, [])
            if spans and spans[-1][1] == line.at:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((line.at, end))
    return found


def _wanted_lines(path: Path) -> list[_Wanted]:
    decode, found = msgspec.json.Decoder(_Wanted).decode, []
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError:
        return []
    for text in texts:
        try:
            found.append(decode(text))
        except (msgspec.DecodeError, UnicodeDecodeError):  # its writer was killed, or it is empty
            continue
    return found
