"""The checkpoint as a state machine: whatever is written, cut, sealed and voided in any order, the
index knows exactly what a plain dictionary knows."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domyn_swarm.batch.checkpoint.index import open_index
from domyn_swarm.batch.checkpoint.job_store import ResultsFolder
from domyn_swarm.batch.checkpoint.journal import Journal
from domyn_swarm.batch.checkpoint.segments import checkpoint_files, join, seal, void_path
from domyn_swarm.batch.input import key_table
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Result, RowValue
from domyn_swarm.batch.outcomes.verdicts import Reading, accepted, outcome_of
from domyn_swarm.model import Accept

ROWS = 12  # few, so that rows collide
VERSIONS = 3
CODES = (0, 0, 1, 4, 6)  # complete, empty, cut, refused


def digest(row: int, version: int) -> bytes:
    return row_digest(row, version).tobytes()


def row_digest(row: int, version: int) -> np.ndarray:
    return np.array([row + 1, version + 1], np.uint64)


@dataclass
class Claim:
    """One result as it was written."""

    row: int
    version: int  # of the row's input
    failed: bool
    code: int  # of an answer: what was said of it
    text: bytes
    generation: int

    def counts_as_failed(self, accept: Accept | None) -> bool:
        return self.failed or not accepted(self.code, accept)


@dataclass
class Driver:
    """One that writes, until it ends or is killed."""

    generation: int
    journal: Journal
    path: Path
    ends: list[int] = field(default_factory=list)  # file size after each frame
    frames: list[list[Claim]] = field(default_factory=list)


class CheckpointMachine(RuleBasedStateMachine):
    @initialize(
        accept=st.sampled_from([None, "any", "complete"]),
        in_memory_bytes=st.sampled_from([64, 1 << 20]),
    )
    def begin(self, accept: Accept | None, in_memory_bytes: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(key_table, "IN_MEMORY_BYTES", in_memory_bytes)
        self.accept = accept
        self.folder = Path(tempfile.mkdtemp())
        self.kept: list[Claim] = []  # of drivers that are gone, weakest first
        self.voided: set[int] = set()
        self.generation = 0
        self.number = 0
        self.driver = self._new_driver()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.patch.undo()
            self.driver.journal.close()
            shutil.rmtree(self.folder)

    def _new_driver(self) -> Driver:
        self.generation += 1
        journal = Journal(self.folder, self.generation, writer=self.generation % 3)
        [path] = [one for one in checkpoint_files(self.folder) if one.suffix == ".journal"]
        return Driver(self.generation, journal, path)

    @rule(
        rows=st.lists(
            st.tuples(
                st.integers(0, ROWS - 1),
                st.integers(0, VERSIONS - 1),
                st.sampled_from([None, *CODES]),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def append(self, rows: list[tuple[int, int, int | None]]) -> None:
        claims = []
        for row, version, code in rows:
            self.number += 1
            text = b'{"n":%d}' % self.number
            claims.append(Claim(row, version, code is None, code or 0, text, self.generation))
        self.driver.journal.append(
            [
                Result(
                    claim.row,
                    digest(claim.row, claim.version),
                    RowValue(
                        b"" if claim.failed else claim.text,
                        claim.text if claim.failed else b"",
                        *(1, 0, 0, 0.1, claim.code),
                    ),
                )
                for claim in claims
            ]
        )
        self.driver.frames.append(claims)
        self.driver.ends.append(self.driver.path.stat().st_size)

    @rule()
    def end(self) -> None:
        self.driver.journal.close()
        self.kept += [claim for frame in self.driver.frames for claim in frame]
        self.driver = self._new_driver()

    @rule(share=st.floats(0, 1), sealed_later=st.booleans())
    def be_killed_and_cut(self, share: float, sealed_later: bool) -> None:
        """SIGKILL, and the file loses its end at any byte, as when a node loses power."""
        driver = self.driver
        size = driver.ends[-1] if driver.ends else 0
        cut = round(size * share)
        with driver.path.open("r+b") as file:
            file.truncate(cut)
        whole = [frame for frame, end in zip(driver.frames, driver.ends, strict=True) if end <= cut]
        self.kept += [claim for frame in whole for claim in frame]
        if sealed_later:
            seal(driver.path)
        else:
            driver.path.rename(
                driver.path.with_suffix(".segment")
            )  # unsealed, but read all the same
        self.driver = self._new_driver()

    @precondition(lambda self: self.generation > 2)
    @rule(first=st.integers(0, 100), count=st.integers(2, 5))
    def join_neighbours(self, first: int, count: int) -> None:
        files = [path for path in checkpoint_files(self.folder) if path.suffix == ".segment"]
        first %= len(files) or 1
        if files:
            join(files[first : first + count])

    @precondition(lambda self: self.generation > 1)
    @rule(which=st.integers(1, 100))
    def void(self, which: int) -> None:
        generation = 1 + which % self.generation
        self.voided.add(generation)
        void_path(self.folder, generation).touch()

    def _expected(self, row: int, version: int) -> tuple[bool, bytes] | None:
        best: Claim | None = None
        current = [claim for frame in self.driver.frames for claim in frame]
        for claim in [*self.kept, *current]:
            if (claim.row, claim.version) != (row, version):
                continue
            if claim.counts_as_failed(self.accept) and (
                claim.generation in self.voided
                or (best is not None and not best.counts_as_failed(self.accept))
            ):
                continue
            best = claim
        if best is None:
            return None
        failed = best.counts_as_failed(self.accept)
        # of an answer that does not count nothing is told but that
        return (failed, best.text if best.failed or not failed else b"")

    @invariant()
    def the_index_knows_what_the_dictionary_knows(self) -> None:
        if not hasattr(self, "folder"):
            return
        for by_id in (False, True):
            keys = RowKeys(["text"], "id" if by_id else None)
            index = open_index([ResultsFolder(self.folder)], keys, Reading(self.accept))
            for version in range(VERSIONS):
                digests = np.array([row_digest(row, version) for row in range(ROWS)])
                matches = index.match(0, digests)
                for row in range(ROWS):
                    found = None
                    if matches.found[row]:
                        value = index.frames.value(int(matches.frame[row]), int(matches.row[row]))
                        assert value is not None
                        failed = bool(matches.failed[row])
                        assert failed or matches.outcome[row] == outcome_of(value)
                        text = value.error if failed else value.output
                        found = (failed, text if text.startswith(b'{"n"') else b"")
                    assert found == self._expected(row, version), (by_id, row, version)
            index.frames.close()


CheckpointMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=25, deadline=None
)
TestCheckpoint = CheckpointMachine.TestCase
