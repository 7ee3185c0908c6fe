"""The store of all answers to the same requests: a folder for each job that sent some of them,
which other jobs with the same requests read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from domyn_swarm.batch.checkpoint import lease as leases
from domyn_swarm.batch.checkpoint.frames import FrameRef, scan_descriptor
from domyn_swarm.batch.checkpoint.lease import Lease
from domyn_swarm.batch.checkpoint.request_identity import JobIdentity
from domyn_swarm.batch.checkpoint.segments import checkpoint_files, file_order
from domyn_swarm.batch.durable_files import try_writing
from domyn_swarm.batch.input.dataset import Dataset
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.errors import CheckpointBusy, InvalidInput, JobError
from domyn_swarm.model import Accept, utc_now
from domyn_swarm.paths import write_private
from domyn_swarm.replaced_files import read_replaced

_MANY, _AT_ONCE = 64, 16  # most of opening a folder is waiting for a file server


@dataclass(frozen=True)
class ResultsFolder:
    """A folder of results, and which of them the reader uses.

    From another job's folder answers are used and errors are not: an error belongs to its job.
    There, of several answers to a row the first one counts, so that a later repetition by that job
    changes nothing here; in the reader's own folder the last one counts.
    """

    path: Path
    own: bool = True
    hidden_to: int = 0  # generations up to this one do not count: their rows were sent again
    only: tuple[int, int] | None = None  # a generation and a writer of it: no others' files

    def files(self) -> list[Path]:
        """The journals and segments, from the weakest claim to the strongest."""
        files = checkpoint_files(self.path)
        return [one for one in files if self.only in (None, file_order(one)[:2])]


@dataclass(frozen=True)
class OpenedFile:
    """One file of a folder. The owner of this object closes the descriptor."""

    descriptor: int
    frames: Sequence[FrameRef]


def open_folders(folders: Sequence[ResultsFolder]) -> list[list[OpenedFile]]:
    """The files of each folder, see `open_folder`; many folders in parallel.

    Raises:
        JobError: there are more than this process may open.
        OSError: a file cannot be read.
    """
    workers = 1 if len(folders) < _MANY else _AT_ONCE
    with ThreadPoolExecutor(workers, thread_name_prefix="folders") as pool:
        opening = [pool.submit(open_folder, folder) for folder in folders]
    try:
        return [one.result() for one in opening]
    except OSError as error:
        for one in opening:
            _close([] if one.exception() else one.result())
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise JobError(
                f"The results of {len(folders)} jobs in {folders[-1].path.parent} are in more "
                "files than this process may open.",
                hint="Raise the limit (ulimit -n), or remove unused results (domyn-swarm "
                "checkpoints rm).",
            ) from error
        raise


def open_folder(folder: ResultsFolder) -> list[OpenedFile]:
    """The present files, from the weakest claim to the strongest; opened again when a journal was
    sealed in between. Empty if the folder was removed.
    """
    while True:
        opened: list[OpenedFile] = []
        try:
            listed = folder.files()
            opened.extend(filter(None, map(_opened, listed)))
            if folder.files() == listed:
                return opened
        except FileNotFoundError:
            _close(opened)
            return []
        except BaseException:
            _close(opened)
            raise
        _close(opened)


def _opened(path: Path) -> OpenedFile | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # sealed meanwhile: the folder is listed again
        return None
    try:
        return OpenedFile(descriptor, scan_descriptor(descriptor))
    except BaseException:
        os.close(descriptor)
        raise


def _close(opened: Sequence[OpenedFile]) -> None:
    for one in opened:
        os.close(one.descriptor)


_KEY = re.compile(r"[0-9a-f]{16}")
_NUMBERED = re.compile(r"^(?:lease-|run-)?(\d{6})[-.]")
_NOTE = "job.json"
_HIDDEN = "hidden.json"
_FIRST_ROWS = 32  # of a frame, which its key depends on
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Asker:
    """A job's names for users."""

    job_id: str
    name: str = ""
    external_id: str | None = None
    input: str = ""


class JobNote(msgspec.Struct, frozen=True):
    """The job whose results a folder holds: `job.json`."""

    input: str
    created_at: datetime
    began_at: datetime  # the last run
    job_id: str  # its job's
    name: str = ""
    external_id: str | None = None
    accept: Accept | None = None  # which answers counted in the last run

    @property
    def words(self) -> str:
        """The job, as a person knows it."""
        return f"{self.job_id} ({self.external_id})" if self.external_id else self.job_id


class Hidden(msgspec.Struct, frozen=True):
    """Generations whose results no longer count for this job: `hidden.json`."""

    own: int = 0  # up to this generation
    others: dict[str, int] = {}  # the same for other jobs, by their keys
    asked_by: str = ""  # the id of the job that hid them


@dataclass(frozen=True)
class JobPlace:
    """The location of a job's results."""

    root: Path
    identity: JobIdentity
    key: str

    @property
    def store(self) -> Path:
        """The folder of all jobs with the same requests."""
        return self.root / self.identity.digest

    @property
    def folder(self) -> Path:
        """The job's own folder."""
        return self.store / self.key

    def readable(self, keys: RowKeys) -> list[ResultsFolder]:
        """The folders in which the job finds results, its own last.

        If inputs are not compared, its own alone: an id or a position identifies a row of one input
        only.

        Raises:
            JobError: the record of hidden results cannot be read.
        """
        hidden = _read_hidden(self.folder)
        own = ResultsFolder(self.folder, hidden_to=hidden.own)
        if keys.fingerprint != "full":
            return [own]
        others = [one for one in job_folders(self.store) if one.name != self.key]
        others.sort(key=_created, reverse=True)  # the oldest job has the strongest claim
        return [
            *(
                ResultsFolder(one, own=False, hidden_to=hidden.others.get(one.name, 0))
                for one in others
            ),
            own,
        ]

    def hide_earlier(self, generation: int, job_id: str) -> None:
        """Hide all existing results from the job, and remove nothing, so that all rows are sent
        again.

        If the same job hid them already and was restarted since, it resumes.

        Args:
            generation: of the run that sends them again; its results and later ones count.
            job_id: of the job that hides them.

        Raises:
            JobError: the record of hidden results cannot be read.
            OSError: it cannot be written.
        """
        if _read_hidden(self.folder).asked_by == job_id:
            return
        last = {one.name: _last_generation(one) for one in job_folders(self.store)}
        last.pop(self.key, None)
        hidden = Hidden(generation - 1, last, job_id)
        write_private(self.folder / _HIDDEN, msgspec.json.encode(hidden).decode())

    def note(self, asker: Asker, accept: Accept | None = None) -> None:
        """Record the job that sends rows now, and which answers count.

        Raises:
            OSError: it cannot be written.
        """
        now, known = utc_now(), read_note(self.folder)
        note = JobNote(
            input=asker.input,
            created_at=now if known is None else known.created_at,
            began_at=now,
            job_id=asker.job_id,
            name=asker.name,
            external_id=asker.external_id,
            accept=accept,
        )
        write_private(self.folder / _NOTE, msgspec.json.encode(note).decode())


def input_key(where: str) -> str:
    """The key of a job over files: the same for all names of one path or URL.

    Contents are not examined: a folder or a file that grows stays the same job's.
    """
    path = where.removeprefix("file://")
    place = path.rstrip("/") if "://" in path else os.path.realpath(path)
    return _digest(place.encode())


def frame_key(dataset: Dataset, keys: RowKeys) -> str:
    """The key of a job over a frame: equal for equal frames, in any library.

    It depends on the key columns, the number of rows, the first ones and the last one.
    """
    compared = RowKeys(keys.input_columns, keys.id_column, "full", keys.as_request)
    parts = [repr((compared.columns, dataset.rows)).encode()]
    last = max(0, dataset.rows - 1)
    for start, limit in ((0, min(_FIRST_ROWS, dataset.rows)), (last, dataset.rows)):
        at = start
        for batch in dataset.batches(compared.columns, start=start, limit=limit):
            parts.append(np.ascontiguousarray(compared.digests(batch, at)).tobytes())
            at += batch.num_rows
    return _digest(b"\n".join(parts))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def job_folders(store: Path) -> Iterator[Path]:
    """The folders of all jobs in a store; none when it is not there."""
    try:
        names = sorted(os.listdir(store))  # noqa: PTH208 - names only
    except FileNotFoundError:
        return
    for name in names:
        if _KEY.fullmatch(name):
            yield store / name


def read_note(folder: Path) -> JobNote | None:
    """The job whose results a folder holds; None when that cannot be read."""
    try:
        text = read_replaced(folder / _NOTE)
        return None if text is None else msgspec.json.decode(text, type=JobNote)
    except (OSError, ValueError):
        return None


def hidden_to(folder: Path) -> int:
    """The last generation whose results are hidden from a job; 0: none.

    Raises:
        JobError: the record cannot be read.
    """
    return _read_hidden(folder).own


def _created(folder: Path) -> tuple[datetime, str]:
    note = read_note(folder)
    return (_LAST if note is None else note.created_at), folder.name


def _read_hidden(folder: Path) -> Hidden:
    path = folder / _HIDDEN
    try:
        text = read_replaced(path)
        return Hidden() if text is None else msgspec.json.decode(text, type=Hidden)
    except (OSError, ValueError) as error:
        raise JobError(
            f"{path} cannot be read, so it is not known which results do not count.",
            hint="Repair it, or remove it and submit the job with --no-resume.",
        ) from error


def _last_generation(folder: Path) -> int:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names only
    except FileNotFoundError:
        return 0
    found = filter(None, map(_NUMBERED.match, names))
    return max((int(match[1]) for match in found), default=0)


def hold(folder: Path) -> Lease:
    """Hold a job's folder. Waits to find out whether a holder on another machine lives.

    Raises:
        CheckpointBusy: another driver holds it; the message names its job.
        JobError: the folder cannot be written.
    """
    try:
        return leases.acquire(folder)
    except CheckpointBusy as error:
        raise _named(folder, error) from error


def check_free(folder: Path) -> None:
    """Refuse rows that another driver is sending now, and a folder that cannot be written. The
    lease of a driver on another machine is watched for a few seconds.

    Raises:
        CheckpointBusy: another driver holds the folder; the message names its job.
        InvalidInput: nothing can be written there, or whether a driver holds it cannot be read.
    """
    try:
        try_writing(folder)
    except OSError as error:
        raise InvalidInput(
            f"The checkpoint {folder} cannot be written: {error.filename}: {error.strerror}.",
            hint="Choose another place with --checkpoint-dir, or repair the folder's permissions.",
        ) from error
    try:
        leases.check_silent(folder)
    except FileNotFoundError:  # no job has sent these requests yet
        return
    except CheckpointBusy as error:
        raise _named(folder, error) from error
    except OSError as error:
        raise InvalidInput(
            f"The checkpoint {folder} cannot be read: {error.filename}: {error.strerror}.",
            hint="Whether another job sends the same rows now is not known. Check that disk and "
            "submit the job again, or choose another place with --checkpoint-dir.",
        ) from error


def _named(folder: Path, error: CheckpointBusy) -> CheckpointBusy:
    note = read_note(folder)
    if note is None:
        return error
    return CheckpointBusy(
        f"The job {note.words} is sending these rows now. {error.message}",
        hint=f"Wait for it or cancel it; if it was submitted: domyn-swarm job wait {note.job_id}, "
        f"domyn-swarm job cancel {note.job_id}. Jobs with other inputs may run at the same time.",
    )
