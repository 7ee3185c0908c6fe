"""A job's results on disk: journals, segments and lease in a folder of their own.

    lease-<generation>.json                            the driver
    <generation>-<writer>-<sequence>.journal|.segment  results
    run-<generation>.json                              the account of that run
    <generation>.void                                  errors of this run are void
    suspects.txt                                       rows in flight as engines ended
    job.json, hidden.json                              see `job_store`

The folder lies in the store of all jobs with the same requests, outside every swarm, so that
another swarm continues after the last swarm's time limit.

    lease-<generation>.json                            who asks
    <generation>-<writer>-<sequence>.journal|.segment  results
    run-<generation>.json                              what that run did and cost
    <generation>.void                                  the errors of this run do not count
    suspects.txt                                       rows in flight as engines died
    job.json, hidden.json                              see `job_store`

It lies in the store of all jobs with the same requests, outside every swarm, so that another swarm
continues where the last one ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from domyn_swarm.batch.checkpoint.index import FrameFiles, PositionalIndex, RowIndex, open_index
from domyn_swarm.batch.checkpoint.job_store import Asker, JobPlace, ResultsFolder, hold
from domyn_swarm.batch.checkpoint.journal import Journal
from domyn_swarm.batch.checkpoint.segments import (
    checkpoint_files,
    file_order,
    merge_earlier,
    remove_unfinished,
    seal,
    void_path,
)
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Result
from domyn_swarm.batch.outcomes.verdicts import AsKept, Reading
from domyn_swarm.errors import CheckpointLost, JobError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Accept, ReplyVerdict
from domyn_swarm.paths import private_dir

_log = get_logger(__name__)

SUSPECTS = "suspects.txt"  # a line for each row that was in flight as an engine ended

_LOOK_S = 1.0


class Checkpoint:
    """The results of one job, held by this process until `close`, and those of other jobs that it
    reads.
    """

    def __init__(
        self,
        place: JobPlace,
        keys: RowKeys,
        asker: Asker,
        *,
        accept: Accept | None = None,
        again: frozenset[ReplyVerdict] | None = None,
    ) -> None:
        """Take the lease and make everything readable that earlier drivers left.

        Args:
            place: the location of the job's results.
            keys: identify its rows.
            asker: the job, for messages to a second driver.
            accept: which answers count.
            again: outcomes of earlier results whose rows are pending again; empty: failed. The
                results stay until better ones are recorded.

        Raises:
            CheckpointBusy: another driver holds it.
            JobError: the folder cannot be used.
        """
        self._place = place
        self._asker = asker
        self.folder = place.folder
        self._keys = keys
        try:
            private_dir(self.folder)
        except OSError as error:
            raise JobError(
                f"Cannot create the checkpoint folder {self.folder}: {error.strerror}.",
                hint="Choose another place with --checkpoint-dir.",
            ) from error
        self._journal: Journal | None = None
        self._writers = 0
        self._lease = hold(self.folder)
        self._published = Reading(accept)
        self._pending = Reading(accept, again, self._lease.generation)
        try:
            place.identity.write(place.store)
            place.note(asker, accept)
            remove_unfinished(self.folder)
            for path in checkpoint_files(self.folder):
                if path.suffix == ".journal" and file_order(path)[0] < self.generation:
                    seal(path)
        except BaseException as error:
            self._lease.release()
            if isinstance(error, OSError):
                raise self._cannot_write(error) from error
            raise

    def _cannot_write(self, error: OSError) -> JobError:
        return JobError(
            f"Cannot write the checkpoint {self.folder}: {error.strerror}.",
            hint="Make room and submit the same job again: finished rows are kept.",
        )

    def index(self) -> RowIndex:
        """The results to publish at this moment. The caller closes `frames` when done.

        Raises:
            JobError: the last appended results cannot be written.
        """
        self._close_journal()
        return self._opened(self._published)

    def shareable(self) -> RowIndex:
        """As `index`, with results in the form in which they are kept, for copies to other rows."""
        self._close_journal()
        return self._opened(AsKept(self._published.accept))

    def settled(self) -> RowIndex:
        """The settled rows at this moment, while writers go on. The caller closes `frames`."""
        return self._opened(self._pending)

    def asked_before(self) -> RowIndex:
        """The results of earlier runs, including those whose rows are pending again. The caller
        closes `frames`.
        """
        return self._opened(self._pending.as_asked)

    def _opened(self, reading: Reading) -> RowIndex:
        return open_index(self._place.readable(self._keys), self._keys, reading)

    def settled_by(self, writer: int) -> RowIndex:
        """The rows that one writer of this run has settled, by the ordinals of this run: only its
        own files are read. The caller closes `frames`.
        """
        mine = ResultsFolder(self.folder, only=(self._lease.generation, writer))
        return PositionalIndex(FrameFiles.open([mine], self._pending))

    def _close_journal(self) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def writer(self) -> tuple[str, int, int]:
        """The folder, the generation and a new writer's number for another process that writes."""
        self._writers += 1
        return str(self.folder), self._lease.generation, self._writers

    @property
    def generation(self) -> int:
        """The number of this run of its job."""
        return self._lease.generation

    def check_held(self) -> None:
        """Return if this driver may send requests and write.

        Raises:
            CheckpointLost: another driver took the checkpoint over, or may do so by now.
        """
        if self._lease.is_held():
            return
        if self._lease.succeeded:
            raise CheckpointLost(
                f"Another driver took over the checkpoint {self.folder}; this one stops.",
                hint="It was silent for too long (suspended?). The other driver continues.",
            )
        raise CheckpointLost(
            f"The lease of the checkpoint {self.folder} cannot be renewed; this driver stops.",
            hint="Check that disk and submit the same job again: finished rows are kept.",
        )

    async def keep_held(self) -> None:
        """Check periodically whether the lease is held, until cancelled.

        Raises:
            CheckpointLost: see `check_held`.
        """
        while True:
            await asyncio.sleep(_LOOK_S)
            self.check_held()

    def tidy(self) -> None:
        """Join small files that earlier drivers left. May run beside everything else."""
        try:
            merge_earlier(self.folder, self._lease.generation)
        except OSError as error:  # they stay, which costs only files
            _log.warning("cannot join files in %s: %s", self.folder, error)

    def ask_again(self) -> None:
        """Hide all existing results from this job: `--no-resume`.

        Raises:
            JobError: that cannot be written.
        """
        try:
            self._place.hide_earlier(self._lease.generation, self._asker.job_id)
        except OSError as error:
            raise self._cannot_write(error) from error
        forget_suspects(self.folder)

    def append(self, results: Sequence[Result]) -> None:
        """Keep results; a killed process loses none of them.

        Raises:
            JobError: they cannot be written, or another driver took the checkpoint over.
        """
        self.check_held()
        if self._journal is None:
            self._journal = Journal(self.folder, self._lease.generation)
        self._journal.append(results)

    def void_failures(self) -> None:
        """Mark the errors that this driver recorded as void: a later run sends those rows again."""
        void_path(self.folder, self._lease.generation).touch(mode=0o600)

    def sync(self) -> None:
        """Make everything that was appended survive a loss of power.

        Raises:
            JobError: the disk refuses it.
        """
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        """Seal the journal and release the lease. Idempotent.

        Raises:
            JobError: the last appended results cannot be written.
        """
        try:
            self._close_journal()
        finally:
            self._lease.release()


def forget_suspects(folder: Path) -> None:
    """Send all rows as if no engine had ever ended under them."""
    (folder / SUSPECTS).unlink(missing_ok=True)
