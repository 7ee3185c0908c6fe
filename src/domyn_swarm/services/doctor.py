"""The checks of `doctor`: this machine, the defaults file, and a configuration.

SQLite needs POSIX locks to keep concurrent writers apart. Some file systems refuse them (Lustre
without `flock`), some grant one lock to several processes, some know only locks of one machine.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from domyn_swarm import __version__, open_files
from domyn_swarm.backends.checks import Check, check_folder, check_private, failed, ok, warning
from domyn_swarm.backends.endpoint.router import Admission, admission, files_needed
from domyn_swarm.backends.endpoint.view import read_address
from domyn_swarm.backends.platforms import serving_backend
from domyn_swarm.backends.rehearsal import Rehearsal
from domyn_swarm.batch.run.limiter import MOST
from domyn_swarm.config import load
from domyn_swarm.config.defaults import check_defaults
from domyn_swarm.config.loading import defaults_path
from domyn_swarm.errors import ConfigError, PlatformError, SwarmError
from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths, checkpoints_dir, home
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.launch import prepare

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
    """Check that a second process cannot lock a file that this process has locked.

    Args:
        folder: folder of the database; it or one of its parents exists.
        mounts: the list of mounts, in the format of proc(5).
        lock: the function with which this process locks.
    """
    there = next(existing for existing in (folder, *folder.parents) if existing.exists())
    try:
        second = _tried_twice(there, lock)
    except OSError as error:
        words = error.strerror or str(error)
        if error.errno in _NO_LOCKS:
            words = f"there are no file locks ({words}), which SQLite needs"
        return failed("locks", f"{there}: {words}", _ELSEWHERE)
    except subprocess.TimeoutExpired:
        why = f"a second process could not try to lock a file at {there} in {_LIMIT_S:.0f} s"
        return failed("locks", why, _ELSEWHERE)
    if second.returncode == 0:
        why = f"{there} gives one lock to two processes: the state database would be damaged"
        return failed("locks", why, _ELSEWHERE)
    option = _local_only(there, mounts)
    if option is not None:
        why = f"{there} is mounted with {option}: its locks are valid on this machine only"
        fix = f"Use domyn-swarm with this home on one machine at a time. {_ELSEWHERE}"
        return warning("locks", why, fix)
    return ok("locks", f"a second process waits for a lock at {there}")


def _tried_twice(
    folder: Path, lock: Callable[[int, int], None]
) -> subprocess.CompletedProcess[str]:
    """Lock a file, and run a second process that tries to lock it, too; the ended process.

    Raises:
        OSError: the file cannot be locked, or no process can be started.
        subprocess.TimeoutExpired: the second process hangs.
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
    """The option of a folder's mount that makes locks local to this machine, or None."""
    try:
        lines = mounts.read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return None
    place = os.path.realpath(folder)
    best: tuple[int, set[str]] = (-1, set())  # length of the mount point, options
    for line in lines:
        before, _, behind = line.partition(" - ")
        fields, rest = before.split(), behind.split()
        if len(fields) < 6 or len(rest) < 3:
            continue
        point = fields[4].replace("\\040", " ")
        inside = point in ("/", place) or place.startswith(f"{point}/")
        if inside and len(point) >= best[0]:  # of mounts at the same point the last one counts
            best = len(point), {*fields[5].split(","), *rest[2].split(",")}
    return next(iter(sorted(_OF_ONE_MACHINE & best[1])), None)


_OTHER_FILES = 128  # that a job opens in addition to its connections


class Examination(Record):
    """The results of all checks of `doctor`."""

    schema_version: Literal[1] = 1
    checks: tuple[Check, ...]

    @property
    def well(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)


def examine(config: Path | None, rehearsal: Rehearsal | None = None) -> Examination:
    """Check this machine, and a configuration, if one is given. Starts nothing but the rehearsal,
    which runs only if no other check failed.

    Raises:
        ConfigError: a rehearsal without a configuration, or on a platform that has none.
    """
    if rehearsal is not None and config is None:
        raise ConfigError("A rehearsal needs a configuration.", hint="Add -c FILE.")
    checks = [*_machine(), *_defaults()]
    if config is not None:
        checks += _swarm(config, rehearsal)
    return Examination(checks=tuple(checks))


def _machine() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield ok("domyn-swarm", f"{__version__}, Python {python} at {sys.executable}")
    yield _files("here", open_files.limits())
    yield check_folder("home", home(), "DOMYN_SWARM_HOME")
    if home().is_dir():
        yield check_private("privacy", home(), "keys and records")
    variables = home() / ".env"
    if variables.is_file():
        yield check_private("privacy", variables, "the variables in it, which may be tokens")
    yield check_locks(home())
    try:
        swarms = SwarmStore.open().swarms()
        yield ok("database", f"live swarms: {len(swarms)}")
        for swarm in swarms:
            yield from _files_of(swarm.name, Path(swarm.swarm_dir))
    except SwarmError as error:
        yield failed("database", error.message, error.hint or "See `domyn-swarm db --help`.")
    if importlib.util.find_spec("smg") is None:
        yield failed("router", "the package smg is missing", "pip install smg")
    else:
        yield ok("router", "smg is installed")


def _files(where: str, limits: open_files.Limits) -> Check:
    """Whether the limit of open files allows as many requests in flight as a job may use."""
    summary = f"{where}: {limits.soft} (soft), {limits.hard} (hard); our programs raise their own"
    if limits.hard >= MOST + _OTHER_FILES:
        return ok("open files", summary)
    return warning(
        "open files",
        f"{summary}, too few for the {MOST} requests that a job may have in flight at one replica",
        "Raise the hard limit (ulimit -Hn; limits.conf, or LimitNOFILE= of slurmd or sshd).",
    )


def _files_of(swarm: str, folder: Path) -> Iterator[Check]:
    """The same check for the node of a live swarm's endpoint, which reports its limits."""
    address = read_address(SwarmPaths(folder))
    if address is not None and address.open_files is not None:
        yield _files(f"on {address.node}, of {swarm}", address.open_files)


def _router_files(plan: DeploymentPlan) -> Check:
    """Whether a router on this machine could take as many requests as configured."""
    wanted = Admission(plan.router.max_concurrent, plan.router.queue_size)
    replicas, hard = plan.layout.replicas, open_files.limits().hard
    possible = admission(wanted, hard, replicas)
    summary = (
        f"on a node like this one the endpoint takes {possible.max_concurrent} requests at once "
        f"and queues {possible.queue_size} more"
    )
    if possible.max_concurrent >= min(MOST, wanted.max_concurrent):
        return ok("endpoint", summary)
    return warning(
        "endpoint",
        f"{summary}: router.max_concurrent {wanted[0]} and queue_size {wanted[1]} need "
        f"{files_needed(wanted, replicas)} open files, but a process may have {hard}",
        "Raise the hard limit where the endpoint runs (ulimit -Hn), or lower max_concurrent.",
    )


def _defaults() -> Iterator[Check]:
    """Check the defaults file on its own, as a mistake in it affects every swarm."""
    path = defaults_path()
    if not path.exists():
        named = bool(os.environ.get("DOMYN_SWARM_DEFAULTS"))
        fix = "Correct or unset DOMYN_SWARM_DEFAULTS, or run `domyn-swarm init defaults`."
        yield (
            failed("defaults", f"there is no {path}", fix)
            if named
            else ok("defaults", f"none ({path})")
        )
        return
    try:
        check_defaults(path)
    except ConfigError as error:
        yield from _mistakes("defaults", error)
        return
    yield ok("defaults", f"{path} is valid")


def _mistakes(name: str, error: ConfigError) -> Iterator[Check]:
    fix = error.hint or "Correct it."
    if not error.mistakes:
        yield failed(name, error.message, fix)
    for mistake in error.mistakes:
        yield failed(name, str(mistake), fix)


def _checkpoints(home_directory: Path) -> Check:
    """Warn if checkpoints are on another file system than the swarm's files.

    Checkpoints of all swarms are in one folder, so that another swarm can continue a job. If
    home_directory is elsewhere, that folder's quota may be too small for all answers.
    """
    folder = checkpoints_dir()
    if _device(folder) == _device(home_directory):
        return ok("checkpoints", f"finished rows are kept in {folder}")
    return warning(
        "checkpoints",
        f"finished rows are kept in {folder}, which is on another file system than the "
        f"home_directory {home_directory}: its quota must be large enough for all answers",
        "Set DOMYN_SWARM_HOME to a folder with enough space, or pass --checkpoint-dir to each job.",
    )


def _device(folder: Path) -> int:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return existing.stat().st_dev


def _not_rehearsed() -> Check:
    why = "the rehearsal was skipped because another check failed"
    return warning("node", why, "Fix the failed checks, and run the command again.")


def _swarm(path: Path, rehearsal: Rehearsal | None) -> Iterator[Check]:
    try:
        config = load(path).config
        launch = prepare(config)  # refuses engine, model, or layout
    except ConfigError as error:
        yield from _mistakes("configuration", error)
        if rehearsal is not None:
            yield _not_rehearsed()
        return
    plan = launch.plan
    yield ok("configuration", f"{path} is valid")
    if plan.backend != "lepton":  # whose endpoint is not our router
        yield _router_files(plan)
    yield _checkpoints(plan.home_directory)
    backend = serving_backend(plan.backend)
    platform_checks = list(backend.checks(plan))
    yield from platform_checks
    if any(check.status == "failed" for check in platform_checks):
        if rehearsal is not None:
            yield _not_rehearsed()
        return
    try:
        yield from backend.rehearse(plan, launch.scripts)
        if rehearsal is not None:
            yield from backend.checks_on_node(plan, launch.context, rehearsal)
    except PlatformError as error:
        yield failed("rehearsal", error.message, error.hint or "Correct the configuration.")
    except OSError as error:
        yield failed("home_directory", str(error), "Correct it, or set another home_directory.")
