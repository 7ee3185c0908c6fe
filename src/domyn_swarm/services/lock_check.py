"""Whether the file system of the state database has the locks that SQLite needs.

Programs that write at once are kept apart by POSIX locks. Some file systems refuse them (Lustre
without `flock`), some grant everybody everything, some know only those of one machine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from domyn_swarm.backends.checks import Check, failed, ok, warning

_REFUSED = 75
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_TRY = f"""
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit({_REFUSED})
"""
_LIMIT_S = 60.0  # for an interpreter to start
_OF_ONE_MACHINE = {"localflock", "nolock", "local_lock=all", "local_lock=posix"}
_ELSEWHERE = (
    "Set DOMYN_SWARM_HOME to a folder on a file system with POSIX locks (a local disk, NFS), or "
    "have this one mounted with them (Lustre: -o flock)."
)


def check_locks(
    folder: Path,
    mounts: Path = Path("/proc/self/mountinfo"),
    lock: Callable[[int, int], None] = fcntl.lockf,
) -> Check:
    """Lock a file in this process, and try to from a second one.

    Args:
        folder: where the database is, or will be; it or one above it exists.
        mounts: what is mounted where, and how, as proc(5) has it.
        lock: how this process locks.
    """
    there = next(one for one in (folder, *folder.parents) if one.exists())
    try:
        second = _tried_twice(there, lock)
    except OSError as error:
        words = error.strerror or str(error)
        if error.errno in _NO_LOCKS:
            words = f"there are no file locks ({words}), without which SQLite cannot be used"
        return failed("locks", f"{there}: {words}", _ELSEWHERE)
    except subprocess.TimeoutExpired:
        why = f"a second process did not get to lock a file at {there} in {_LIMIT_S:.0f} s"
        return failed("locks", why, _ELSEWHERE)
    if second.returncode == 0:
        why = f"{there} gives one lock to two processes: the state database would be damaged"
        return failed("locks", why, _ELSEWHERE)
    option = _local_only(there, mounts)
    if option is not None:
        why = f"{there} is mounted with {option}: its locks hold on this machine alone"
        fix = f"Use domyn-swarm with this home on one machine at a time. {_ELSEWHERE}"
        return warning("locks", why, fix)
    return ok("locks", f"a second process waits for a lock at {there}")


def _tried_twice(
    folder: Path, lock: Callable[[int, int], None]
) -> subprocess.CompletedProcess[str]:
    """What a second process says that tries to lock what this one has locked.

    Raises:
        OSError: nothing can be locked there, or no process started.
        subprocess.TimeoutExpired: it hangs.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".domyn-swarm-") as file:
        lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        second = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY, file.name],
            capture_output=True,
            encoding="utf-8",
            timeout=_LIMIT_S,
            check=False,
        )
    if second.returncode not in (0, _REFUSED):
        raise OSError(second.stderr.strip() or f"exit code {second.returncode}")
    return second


def _local_only(folder: Path, mounts: Path) -> str | None:
    """The option of a folder's mount by which other machines do not see its locks."""
    try:
        lines = mounts.read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return None
    place = os.path.realpath(folder)
    found: tuple[int, set[str]] = (-1, set())
    for line in lines:
        before, _, behind = line.partition(" - ")
        fields, rest = before.split(), behind.split()
        if len(fields) < 6 or len(rest) < 3:
            continue
        point = fields[4].replace("\\040", " ")
        inside = point in ("/", place) or place.startswith(f"{point}/")
        if inside and len(point) >= found[0]:  # of those on one another the last
            found = len(point), {*fields[5].split(","), *rest[2].split(",")}
    return next(iter(sorted(_OF_ONE_MACHINE & found[1])), None)
