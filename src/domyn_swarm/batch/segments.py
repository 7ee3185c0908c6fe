"""The files of a checkpoint: journals that grow, segments that do not change any more.

Names are `<generation>-<writer>-<sequence>.journal` and `.segment`; a later generation or sequence
wins where two files hold the same row. A file belongs to the one process that created it: a driver
of that generation, or one of its workers.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from domyn_swarm.batch.frames import SortedFrames

_NAME = re.compile(r"^(\d{6,})-(\d{3,})-(\d{8,})\.(journal|segment)$")
SEGMENT_FRAME_ROWS = 2048


def file_order(path: Path) -> tuple[int, int, int, bool]:
    """Sort key: generation, writer, sequence, and a segment after its journal."""
    match = _NAME.match(path.name)
    if match is None:
        raise ValueError(f"{path} is not a file of a checkpoint")
    return int(match[1]), int(match[2]), int(match[3]), match[4] == "segment"


def checkpoint_files(folder: Path) -> list[Path]:
    """The journals and segments in a folder, from the weakest claim to the strongest."""
    return sorted((path for path in folder.iterdir() if _NAME.match(path.name)), key=file_order)


def void_path(folder: Path, generation: int) -> Path:
    """Exists when the errors that this generation recorded do not count any more."""
    return folder / f"{generation:06d}.void"


def seal(journal: Path) -> None:
    """Turn a journal that nobody appends to into a segment; an empty one just goes.

    The segment appears whole (temporary file, fsync, rename) before the journal goes, so that
    a crash in between leaves both, which is harmless.
    """
    results = SortedFrames(journal)
    if results.rows:
        temporary = journal.with_suffix(".sealing")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            for frame in results.frames(SEGMENT_FRAME_ROWS):
                file.write(frame)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(journal.with_suffix(".segment"))
    journal.unlink()
