"""One job's folder as it is read: by the job itself, or by another job of the same requests."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from domyn_swarm.batch.frames import FrameRef, scan_descriptor
from domyn_swarm.batch.segments import checkpoint_files, file_order
from domyn_swarm.errors import JobError

_MANY, _AT_ONCE = 64, 16  # most of opening a folder is waiting for a file server


@dataclass(frozen=True)
class ResultsFolder:
    """Where results lie, and what of them the reader takes.

    Of another job's folder answers count and errors do not: an error is its own job's. There, of
    several answers to a row the first one counts, so that what that job asks again later changes
    nothing here; in the reader's own folder it is the last one.
    """

    path: Path
    own: bool = True
    hidden_to: int = 0  # generations up to this one count for nothing: they were asked again
    only: tuple[int, int] | None = None  # a generation and a writer of it: no others' files

    def files(self) -> list[Path]:
        """The journals and segments, from the weakest claim to the strongest."""
        files = checkpoint_files(self.path)
        return [one for one in files if self.only in (None, file_order(one)[:2])]


@dataclass(frozen=True)
class OpenedFile:
    """One file of a folder. Whoever has it closes the descriptor."""

    descriptor: int
    frames: Sequence[FrameRef]


def open_folders(folders: Sequence[ResultsFolder]) -> list[list[OpenedFile]]:
    """The files of each folder as they are, see `open_folder`; of many, side by side.

    Raises:
        JobError: there are more than this process may open.
        OSError: one cannot be read.
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
                hint="Raise the limit (ulimit -n), or remove what nobody needs (domyn-swarm "
                "checkpoints rm).",
            ) from error
        raise


def open_folder(folder: ResultsFolder) -> list[OpenedFile]:
    """The files as they are, from the weakest claim to the strongest; opened again when a journal
    was sealed in between. None of a folder that was removed.
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
