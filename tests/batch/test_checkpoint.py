"""The checkpoint's files: cut anywhere, they keep what lies before the cut."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domyn_swarm.batch.checkpoint import lease
from domyn_swarm.batch.checkpoint.checkpoint_folder import Checkpoint
from domyn_swarm.batch.checkpoint.frames import (
    SortedFrames,
    encode_frame,
    read_results,
    scan_frames,
)
from domyn_swarm.batch.checkpoint.index import FrameFiles, IdIndex, PositionalIndex, open_index
from domyn_swarm.batch.checkpoint.job_store import Asker, JobPlace, ResultsFolder
from domyn_swarm.batch.checkpoint.journal import Journal
from domyn_swarm.batch.checkpoint.request_identity import JobIdentity, in_words
from domyn_swarm.batch.checkpoint.segments import (
    MOST_FILES,
    checkpoint_files,
    join,
    merge_earlier,
    seal,
    void_path,
)
from domyn_swarm.batch.input.row_keys import Digests, RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Result, RowValue
from domyn_swarm.errors import CheckpointBusy, JobError
from domyn_swarm.jobs.preparation import prepare
from domyn_swarm.jobs.worker import main
from patience import until

IDENTITY = JobIdentity({"job": "m:J", "params": {"temperature": 0.1}})


KEYS = RowKeys(["text"], None)
ASKER = Asker("j1")


def place(root: Path) -> JobPlace:
    return JobPlace(root, IDENTITY, "0" * 16)


def digest(number: int, version: int = 1) -> bytes:
    return as_matrix([number], version).tobytes()


def as_matrix(numbers: Iterable[int], version: int = 1) -> Digests:
    return np.array([[number + 1, version] for number in numbers], np.uint64)


def result(number: int, *, failed: bool = False, version: int = 1, text: str = "") -> Result:
    output = b"" if failed else (text or f'{{"a":{number}}}').encode()
    error = b'{"type":"E"}' if failed else b""
    return Result(number, digest(number, version), RowValue(output, error, 1, 2, 3, 0.5))


def test_a_file_cut_at_any_byte_keeps_the_frames_before_the_cut(tmp_path: Path) -> None:
    pairs = [[result(n), result(n + 1)] for n in (0, 2, 4, 6)]
    frames = [encode_frame(pair, 1, compress=at % 2 == 0) for at, pair in enumerate(pairs)]
    whole = b"".join(frames)
    ends = np.cumsum([len(frame) for frame in frames])
    path = tmp_path / "000001-000-00000000.journal"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = int((ends <= cut).sum())
        with path.open("rb") as file:
            rows = [
                row.ordinal for ref in scan_frames(path) for row in read_results(file.fileno(), ref)
            ]
        assert rows == list(range(kept * 2))


def test_a_flipped_byte_never_yields_a_wrong_result(tmp_path: Path) -> None:
    whole = b"".join(encode_frame([result(n)], 1) for n in range(4))
    path = tmp_path / "000001-000-00000000.journal"
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        with path.open("rb") as file:
            found = [row for ref in scan_frames(path) for row in read_results(file.fileno(), ref)]
        assert all(row == result(row.ordinal) for row in found)
        assert len(found) < 4


def test_sealing_sorts_keeps_every_row_and_survives_a_crash_in_between(tmp_path: Path) -> None:
    journal = Journal(tmp_path, generation=1)
    for number in reversed(range(100)):
        journal.append([result(number)])
    journal.close()
    [segment] = checkpoint_files(tmp_path)
    assert segment.suffix == ".segment"
    assert segment.stat().st_mode & 0o777 == 0o600
    # The crash: the segment is there and the journal is still there too.
    again = segment.with_suffix(".journal")
    again.write_bytes(b"".join(encode_frame([result(number)], 1) for number in range(100)))
    seal(again)
    assert checkpoint_files(tmp_path) == [segment]
    frames = FrameFiles([ResultsFolder(tmp_path)])
    matches = PositionalIndex(frames).match(0, as_matrix(range(100)))
    assert matches.found.all()
    frames.close()


def test_a_segment_is_on_the_disk_before_its_journal_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss of power takes rows that were synced as they were appended."""
    synced: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name.partition("-")[0]
        synced.append((name, sorted(path.suffix for path in tmp_path.iterdir())))
        fsync(descriptor)

    journal = Journal(tmp_path, generation=1)
    journal.append([result(number) for number in range(100)])
    monkeypatch.setattr(os, "fsync", note)
    journal.close()
    assert [path.suffix for path in checkpoint_files(tmp_path)] == [".segment"]
    assert synced == [
        ("000001", [".journal"]),
        (tmp_path.name, [".journal"]),
        (".unfinished", ["", ".journal"]),
        (tmp_path.name, [".journal", ".segment"]),
    ]


@pytest.mark.parametrize("by_id", [False, True])
def test_answers_win_over_errors_and_later_over_earlier(tmp_path: Path, by_id: bool) -> None:
    def write(generation: int, rows: list[Result]) -> None:
        journal = Journal(tmp_path, generation)
        journal.append(rows)
        journal.close()

    write(1, [result(0, text='{"a":"old"}'), result(1), result(2, failed=True)])
    write(2, [result(0, text='{"a":"new"}'), result(1, failed=True), result(3, failed=True)])
    frames = FrameFiles([ResultsFolder(tmp_path)])
    index = (IdIndex if by_id else PositionalIndex)(frames)
    matches = index.match(0, as_matrix(range(5)))
    assert matches.found.tolist() == [True, True, True, True, False]
    assert matches.failed.tolist() == [False, False, True, True, False]
    newest = frames.value(int(matches.frame[0]), int(matches.row[0]))
    assert newest is not None
    assert newest.output == b'{"a":"new"}'
    frames.close()
    void_path(tmp_path, 2).touch()
    frames = FrameFiles([ResultsFolder(tmp_path)])
    index = (IdIndex if by_id else PositionalIndex)(frames)
    matches = index.match(0, as_matrix(range(5)))
    assert matches.found.tolist() == [True, True, True, False, False]
    frames.close()


def test_a_changed_input_does_not_match(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1)
    journal.append([result(0), result(1)])
    journal.close()
    for index_type in (PositionalIndex, IdIndex):
        frames = FrameFiles([ResultsFolder(tmp_path)])
        changed = np.concatenate([as_matrix([0], version=9), as_matrix([1])])
        matches = index_type(frames).match(0, changed)
        assert matches.found.tolist() == [False, True]
        frames.close()


def test_a_second_holder_is_refused_and_a_released_lease_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    first = Checkpoint(place(tmp_path), KEYS, ASKER)
    with pytest.raises(CheckpointBusy, match=str(os.getpid())):
        Checkpoint(place(tmp_path), KEYS, ASKER)
    first.close()
    Checkpoint(place(tmp_path), KEYS, ASKER).close()


def test_a_killed_holder_is_succeeded_at_once_and_its_rows_are_kept(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from domyn_swarm.batch.checkpoint import lease
from domyn_swarm.batch.checkpoint.checkpoint_folder import Checkpoint
from domyn_swarm.batch.checkpoint.request_identity import JobIdentity
from domyn_swarm.batch.checkpoint.job_store import Asker, JobPlace
from domyn_swarm.batch.checkpoint.journal import Journal
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Result, RowValue
place = JobPlace(Path({str(tmp_path)!r}), JobIdentity({dict(IDENTITY.fields)!r}), "0" * 16)
held = Checkpoint(place, {KEYS!r}, Asker("j1"))
held.append([Result(7, {digest(7)!r}, RowValue(b'{{"a":7}}', b"", 1, 2, 3, 0.5))])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -9
    checkpoint = Checkpoint(place(tmp_path), KEYS, ASKER)
    index = checkpoint.index()
    assert index.match(7, as_matrix([7])).found.all()
    index.frames.close()
    checkpoint.close()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="Cannot create the checkpoint folder"):
        Checkpoint(place(tmp_path / "file"), KEYS, ASKER)


def test_a_driver_that_was_succeeded_and_one_that_cannot_renew_its_lease_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    checkpoint = Checkpoint(place(tmp_path), KEYS, ASKER)
    checkpoint.append([result(0)])
    (checkpoint.folder / "lease-000002.json").write_text("{}")
    until(lambda: not checkpoint._lease.is_held())
    with pytest.raises(JobError, match="Another driver took over"):
        checkpoint.append([result(1)])
    checkpoint._lease.succeeded = False
    with pytest.raises(JobError, match="cannot be renewed"):
        checkpoint.append([result(1)])
    checkpoint.close()


def test_what_the_disk_refuses_only_as_it_is_synced_is_an_error_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As network file systems do; everything is closed all the same, and what is there is read."""

    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".journal":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        fsync(descriptor)

    checkpoint = Checkpoint(place(tmp_path), KEYS, ASKER)
    checkpoint.append([result(7)])
    monkeypatch.setattr(os, "fsync", refuse)
    for ask in (checkpoint.sync, checkpoint.close):
        with pytest.raises(JobError, match=r"Cannot write the checkpoint .*[Qq]uota"):
            ask()
    monkeypatch.undo()
    again = Checkpoint(place(tmp_path), KEYS, ASKER)
    index = again.index()
    assert index.match(7, as_matrix([7])).found.all()
    index.frames.close()
    again.close()


def test_a_file_that_grows_no_more_is_synced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system says once that it could not write; from then on nothing is taken for synced."""
    monkeypatch.setattr("domyn_swarm.batch.checkpoint.journal.JOURNAL_ROWS", 10)
    fsync = os.fsync
    refused: list[str] = []

    def refuse(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if name.endswith("-00000000.journal") and not refused:
            refused.append(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    journal = Journal(tmp_path, generation=1)
    journal.append([result(number) for number in range(10)])
    until(lambda: len(refused) > 0)
    for ask in (journal.sync, journal.close):
        with pytest.raises(JobError, match=r"Cannot write the checkpoint .*Input/output error"):
            ask()
    index = open_index([ResultsFolder(tmp_path)], KEYS)
    assert index.match(0, as_matrix(range(10))).found.all()
    index.frames.close()


def test_a_disk_that_is_full_says_so_and_the_file_ends_with_a_whole_frame(tmp_path: Path) -> None:
    """A disk takes what it has room for, and says why no more only when it is asked for the rest:
    the system's limit for the size of a file does just that.
    """
    journal = Journal(tmp_path, generation=1)
    journal.append([result(0)])
    [path] = checkpoint_files(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(JobError, match=r"Cannot write the checkpoint .*: File too large"):
            journal.append([result(1)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.append([result(2)])
    journal.close()
    index = open_index([ResultsFolder(tmp_path)], KEYS)
    assert index.match(0, as_matrix(range(3))).found.tolist() == [True, False, True]
    index.frames.close()


def test_nothing_is_written_behind_half_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = Journal(tmp_path, generation=1)
    journal.append([result(0)])
    monkeypatch.setattr("domyn_swarm.batch.checkpoint.journal.write_whole", torn)
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(JobError, match="No space left on device"):
        journal.append([result(1)])
    monkeypatch.undo()
    with pytest.raises(JobError, match="Input/output error"):
        journal.append([result(2)])  # it would not be read
    with pytest.raises(JobError, match="Input/output error"):
        journal.close()


def torn(descriptor: int, frame: bytes) -> None:
    os.write(descriptor, frame[:9])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_of_two_that_seal_one_journal_neither_harms_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new driver, and a worker that outlives its own and is killed as it begins to seal."""

    class Killed(BaseException):
        pass

    def killed(_self: SortedFrames, _rows: int) -> Iterator[bytes]:
        raise Killed

    journal = tmp_path / "000001-000-00000000.journal"
    journal.write_bytes(b"".join(encode_frame([result(number)], 1) for number in range(100)))
    fsync = os.fsync

    def beside_another(descriptor: int) -> None:
        fsync(descriptor)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(SortedFrames, "frames", killed)
        with pytest.raises(Killed):
            seal(journal)

    monkeypatch.setattr(os, "fsync", beside_another)
    seal(journal)
    index = open_index([ResultsFolder(tmp_path)], KEYS)
    assert index.match(0, as_matrix(range(100))).found.all()
    index.frames.close()


def test_what_is_appended_to_a_journal_while_it_is_sealed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "000001-000-00000000.journal"
    journal.write_bytes(encode_frame([result(0)], 1))
    write_frames = SortedFrames.frames

    def grows(self: SortedFrames, rows: int) -> Iterator[bytes]:
        yield from write_frames(self, rows)
        with journal.open("ab") as file:
            file.write(encode_frame([result(self.rows)], 1))

    monkeypatch.setattr(SortedFrames, "frames", grows)
    seal(journal)
    index = open_index([ResultsFolder(tmp_path)], KEYS)
    assert index.match(0, as_matrix(range(4))).found.all()  # it is tried three times
    index.frames.close()
    assert [path.name for path in tmp_path.iterdir()] == [journal.name]


def test_the_files_of_a_later_driver_are_left_to_it(tmp_path: Path) -> None:
    folder = place(tmp_path).folder
    folder.mkdir(parents=True)
    earlier, later = (folder / f"00000{at}-000-00000000.journal" for at in (0, 5))
    for path in (earlier, later):
        path.write_bytes(encode_frame([result(0)], 1))
    (folder / ".unfinished-1-abcd").write_bytes(b"of one that was killed")
    Checkpoint(place(tmp_path), KEYS, ASKER).close()
    assert sorted(path.name for path in folder.iterdir() if path.name[0] in "0.") == [
        earlier.with_suffix(".segment").name,
        later.name,
    ]


def test_of_a_damaged_file_those_rows_are_asked_again_and_no_others(bench: Any) -> None:
    """Their keys are whole, so it shows as the output is written, and not before."""
    bench.write(2300)  # more than one batch of the input
    plan = prepare(bench.spec()).plan
    [first, second] = plan.dataset.batches(["prompt"])
    keys = plan.output.keys
    asked = [*keys.digests(first, 0), *keys.digests(second, first.num_rows)]
    value = RowValue(b'{"answer":"kept"}', b"", 1, 2, 3, 0.5)
    results = [Result(number, one.tobytes(), value) for number, one in enumerate(asked)]
    frames = [encode_frame(results[at : at + 100], 1, compress=True) for at in range(0, 2300, 100)]
    frames[21] = frames[21][:-1] + bytes([frames[21][-1] ^ 1])  # the end of its values
    plan.folder.mkdir(parents=True)
    (plan.folder / "000001-000-00000000.segment").write_bytes(b"".join(frames))
    assert main([str(bench.job_folder(bench.spec()))]) == 0
    damaged = range(2100, 2200)
    assert bench.server.asked == Counter(f"p{number}" for number in damaged)
    answers = [row["answer"] for row in bench.output()]
    assert answers == [f"P{number}" if number in damaged else "kept" for number in range(2300)]


def test_differences_are_told_field_by_field() -> None:
    other = JobIdentity({"job": "m:J", "params": {"temperature": 0.7, "top_p": 1}})
    assert other.digest != IDENTITY.digest
    assert other.differences(IDENTITY.fields) == [
        "params.temperature: 0.1 → 0.7",
        "params.top_p: null → 1",
    ]


def test_what_differs_is_told_as_users_call_it() -> None:
    long = "Answer in one word. " * 5
    old = {"prompt": f"{long}Rain?", "params": {"seed": 1}, "source": "a", "tag": None, "job": "A"}
    new = {"prompt": f"{long}Snow?", "params": {}, "source": "b", "tag": "t", "job": "B"}
    assert in_words(old, new) == [
        'job\'s class: "A" → "B"',
        "seed: 1 → not set",
        'prompt: …"n one word. Rain?" → …"n one word. Snow?"',
        "the code of the job",
        '--checkpoint-tag: not set → "t"',
    ]
    assert in_words(old, {**new, "model": "m"})[-1] == "and 1 more"


def test_a_journal_that_is_sealed_just_as_it_is_opened_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a coordinator does that looks for a dead worker's rows while others go on."""
    path = tmp_path / "000001-000-00000000.journal"
    path.write_bytes(encode_frame([result(0), result(1)], 1))
    opened = os.open

    def sealed_then(name: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = opened(name, flags, mode)
        if name == path:
            path.rename(path.with_suffix(".segment"))
        return descriptor

    monkeypatch.setattr(os, "open", sealed_then)
    frames = FrameFiles([ResultsFolder(tmp_path)])
    assert PositionalIndex(frames).match(0, as_matrix(range(2))).found.all()
    frames.close()


def test_many_short_runs_leave_few_files_and_every_row(tmp_path: Path) -> None:
    for number in range(100):
        checkpoint = Checkpoint(place(tmp_path), KEYS, ASKER)
        checkpoint.append([result(number, failed=number % 10 == 0)])
        if number % 20 == 0:
            checkpoint.void_failures()
        checkpoint.tidy()
        checkpoint.close()
    folder = place(tmp_path).folder
    assert len(checkpoint_files(folder)) <= MOST_FILES + 1
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    index = open_index([ResultsFolder(folder)], KEYS)
    matches = index.match(0, as_matrix(range(100)))
    assert np.flatnonzero(~matches.found).tolist() == [0, 20, 40, 60, 80]
    assert np.flatnonzero(matches.failed).tolist() == [10, 30, 50, 70, 90]
    for row in np.flatnonzero(matches.found & ~matches.failed).tolist():
        value = index.frames.value(int(matches.frame[row]), int(matches.row[row]))
        assert value == result(row).value
    index.frames.close()


def test_a_long_run_leaves_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domyn_swarm.batch.checkpoint.journal.JOURNAL_ROWS", 10)
    journals = [Journal(tmp_path, 1, writer) for writer in range(2)]
    for start in range(0, 5_000, 5):
        journals[start % 2].append([result(number) for number in range(start, start + 5)])
    for journal in journals:
        journal.close()
    assert len(checkpoint_files(tmp_path)) <= 2 * MOST_FILES
    frames = FrameFiles([ResultsFolder(tmp_path)])
    assert frames.rows == 5_000
    assert PositionalIndex(frames).match(0, as_matrix(range(5_000))).found.all()
    frames.close()


@pytest.mark.parametrize("void_first", [False, True])
def test_errors_that_count_are_not_joined_with_void_ones(tmp_path: Path, void_first: bool) -> None:
    """Not even where the files on both sides of the boundary would be the cheapest to join."""
    half = MOST_FILES // 2
    for generation in range(1, 2 * half + 1):
        away = abs(generation - half - 0.5)
        journal = Journal(tmp_path, generation)
        journal.append([result(generation, failed=True)] * round(1 + 10 * away))
        journal.close()
        if (generation <= half) is void_first:
            void_path(tmp_path, generation).touch()
    merge_earlier(tmp_path, 2 * half + 1)
    assert len(checkpoint_files(tmp_path)) < 2 * half
    index = open_index([ResultsFolder(tmp_path)], KEYS)
    found = index.match(1, as_matrix(range(1, 2 * half + 1))).found.tolist()
    assert found == [not void_first] * half + [void_first] * half
    index.frames.close()


def test_a_crash_while_files_are_joined_loses_and_doubles_nothing(tmp_path: Path) -> None:
    for generation in range(1, 6):
        journal = Journal(tmp_path, generation)
        journal.append([result(generation)])
        journal.close()
    before = {path.name: path.read_bytes() for path in checkpoint_files(tmp_path)}
    join(checkpoint_files(tmp_path)[:4])
    for name, content in list(before.items())[:3]:  # killed before the old files went
        (tmp_path / name).write_bytes(content)
    index = open_index([ResultsFolder(tmp_path)], KEYS)
    assert index.match(1, as_matrix(range(1, 6))).found.all()
    index.frames.close()


def test_a_thousandth_writer_is_read_as_the_first(tmp_path: Path) -> None:
    """As in a run of three days whose workers are replaced all the time."""
    for writer in (1, 999, 1000, 12_345):
        journal = Journal(tmp_path, 1, writer)
        journal.append([result(writer)])
        journal.close()
    index = open_index([ResultsFolder(tmp_path)], KEYS)
    for writer in (1, 999, 1000, 12_345):
        assert index.match(writer, as_matrix([writer])).found.all()
    index.frames.close()
