"""A job's results on disk: journal, segments, lease and identity in one folder.

    <root>/<identity>/identity.json
                      lease-<generation>.json
                      <generation>-<writer>-<sequence>.journal | .segment
                      run-<generation>.json    what that run did and cost
                      <generation>.void        results of this generation's failed rows are void
                      suspects.txt             rows that were in flight as engines died

It lives outside every swarm, so that another swarm goes on where the last one's time ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domyn_swarm.batch import lease as leases
from domyn_swarm.batch.identity import JobIdentity
from domyn_swarm.batch.index import FrameFiles, PositionalIndex, RowIndex, open_index
from domyn_swarm.batch.journal import Journal
from domyn_swarm.batch.merging import merge_earlier
from domyn_swarm.batch.row_keys import RowKeys
from domyn_swarm.batch.rows import Result
from domyn_swarm.batch.segments import checkpoint_files, seal, void_path
from domyn_swarm.batch.suspects import forget_suspects
from domyn_swarm.batch.verdicts import AsKept, Reading
from domyn_swarm.errors import JobError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Accept, ReplyVerdict
from domyn_swarm.paths import private_dir

_log = get_logger(__name__)


class Checkpoint:
    """The results of one job identity, held by this process until `close`."""

    def __init__(
        self,
        root: Path,
        identity: JobIdentity,
        keys: RowKeys,
        *,
        accept: Accept | None = None,
        again: frozenset[ReplyVerdict] | None = None,
    ) -> None:
        """Take the lease and make everything earlier drivers left readable.

        Args:
            root: where checkpoints lie.
            identity: the job's.
            keys: by what its rows are known.
            accept: which answers count.
            again: what earlier drivers' results must be for their rows to be pending once more;
                empty: failed. They stay until better ones come.

        Raises:
            CheckpointBusy: another driver holds it.
            JobError: the folder cannot be used.
        """
        self.folder = root / identity.digest
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
        self._lease = leases.acquire(self.folder)
        self._published = Reading(accept)
        self._pending = Reading(accept, again, self._lease.generation)
        try:
            identity.write(self.folder)
            for path in checkpoint_files(self.folder):
                if path.suffix == ".journal":
                    seal(path)
        except BaseException as error:
            self._lease.release()
            if isinstance(error, OSError):
                raise JobError(
                    f"Cannot write the checkpoint {self.folder}: {error.strerror}.",
                    hint="Make room and submit the same job again: what is finished is kept.",
                ) from error
            raise

    def index(self) -> RowIndex:
        """What there is to be published, as of now. The caller closes `frames` when done.

        Raises:
            JobError: the disk does not take what was appended last.
        """
        self._close_journal()
        return open_index(self.folder, self._keys, self._published)

    def shareable(self) -> RowIndex:
        """As `index`; it gives results as they are kept, to be kept for other rows, too."""
        self._close_journal()
        return open_index(self.folder, self._keys, AsKept(self._published.accept))

    def settled(self) -> RowIndex:
        """What need not be asked, as of now, while writers go on. The caller closes `frames`."""
        return open_index(self.folder, self._keys, self._pending)

    def settled_by(self, writer: int) -> RowIndex:
        """What one writer of this run has settled, by the ordinals of this run: only its own files
        are read. The caller closes `frames`.
        """
        mine = self._lease.generation, writer
        return PositionalIndex(FrameFiles.open(self.folder, self._pending, mine))

    def _close_journal(self) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def writer(self) -> tuple[str, int, int]:
        """The folder, the generation and a number of its own for another process that writes."""
        self._writers += 1
        return str(self.folder), self._lease.generation, self._writers

    @property
    def generation(self) -> int:
        """Which run of its job this is."""
        return self._lease.generation

    def check_held(self) -> None:
        """Raise JobError when another driver took the checkpoint over, or may do so by now."""
        if not self._lease.lost.is_set():
            return
        if self._lease.succeeded:
            raise JobError(
                f"Another driver took over the checkpoint {self.folder}; this one stops.",
                hint="It was silent for too long (suspended?). The other one goes on.",
            )
        raise JobError(
            f"The lease of the checkpoint {self.folder} cannot be renewed; this driver stops.",
            hint="Check that disk and submit the same job again: what is finished is kept.",
        )

    def tidy(self) -> None:
        """Join what earlier drivers left in many small files. May run beside everything else."""
        try:
            merge_earlier(self.folder, self._lease.generation)
        except OSError as error:  # they stay, and are as good as fewer ones
            _log.warning("cannot join files in %s: %s", self.folder, error)

    def forget(self) -> None:
        """Remove every result: `--no-resume`."""
        for path in checkpoint_files(self.folder):
            path.unlink()
        for path in self.folder.glob("*.void"):
            path.unlink()
        forget_suspects(self.folder)

    def append(self, results: Sequence[Result]) -> None:
        """Keep results; a killed process loses none of them.

        Raises:
            JobError: the disk does not take them, or another driver took the checkpoint over.
        """
        self.check_held()
        if self._journal is None:
            self._journal = Journal(self.folder, self._lease.generation)
        self._journal.append(results)

    def void_failures(self) -> None:
        """Give up the errors that this driver recorded: a later run asks those rows again."""
        void_path(self.folder, self._lease.generation).touch(mode=0o600)

    def sync(self) -> None:
        """Have everything that was appended survive a loss of power.

        Raises:
            JobError: the disk does not take it.
        """
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        """Seal the journal and let the next driver in. Idempotent.

        Raises:
            JobError: the disk does not take what was appended last.
        """
        try:
            self._close_journal()
        finally:
            self._lease.release()
