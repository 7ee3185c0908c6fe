"""One cluster for the whole session; a test that uses `slurm` submits to it.

Its nodes have addresses of their own where this machine lets them (root, and the right to make
network namespaces), else all are 127.0.0.1 and a warning says so. `DOMYN_SWARM_TEST_SLURM_NETWORK`
asks for one: `namespaces` (fails where that is impossible) or `loopback`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurm.cluster import CLIENT_VARIABLES, SlurmCluster, missing_programs
from slurm.namespaces import Namespaces

if TYPE_CHECKING:
    from slurm.swarms import Up

NETWORK = "DOMYN_SWARM_TEST_SLURM_NETWORK"

_LAST_LINES = 25


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails tells what its cluster and its swarms' programs said last: the fixtures
    are about to take all of it away. A controller that is down, or a log that goes meanwhile, is
    no reason to end all tests.
    """
    report = yield
    given = getattr(item, "funcargs", {})
    if report.when == "call" and report.failed and "slurm" in given:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            report.sections.extend(_told(given["slurm"], Path(os.environ["DOMYN_SWARM_HOME"])))
    return report


def _told(cluster: SlurmCluster, home: Path) -> Iterator[tuple[str, str]]:
    ours = [log for name in ("slurm/*", "watchdog.log") for log in home.rglob(name)]
    for log in [cluster.folder / "log/slurmctld.log", *sorted(ours)]:
        yield str(log), _end_of(log)
    jobs = cluster.run("squeue", "-a", "-r", "-t", "all", "-o", "%i %j %T %r %N")
    yield "Slurm's jobs", jobs.stdout + jobs.stderr


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])


def net_wanted() -> bool:
    """Whether the session's cluster gets `net`; fails where that is asked for and impossible."""
    asked = os.environ.get(NETWORK, "")
    if asked not in {"", "loopback", "namespaces"}:
        pytest.fail(f"{NETWORK} is {asked!r}: it can be 'loopback' or 'namespaces'")
    if asked == "loopback":
        return False
    if why := Namespaces.refusal():
        if asked:
            pytest.fail(f"{NETWORK}={asked}, but: {why}")
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # it shall be seen, not fail tests
            warnings.warn(f"all nodes of the Slurm cluster are 127.0.0.1: {why}", stacklevel=2)
        return False
    return True


def need_programs(*, accounting: bool = False) -> None:
    """Skip what Slurm is not installed for, loudly; in CI that is a failure."""
    missing = missing_programs(accounting=accounting)
    if missing:
        why = f"Slurm is not installed ({', '.join(missing)}): `make slurm-packages` does it"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(f"NO SLURM TESTS: {why}")


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Four nodes with four GPUs each, without accounting."""
    need_programs()
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets' paths must be short
    cluster = SlurmCluster(folder, net=net_wanted())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, as this process' own; its jobs of one test do not outlive it, but for those of
    a swarm that stands for all tests of a module.
    """
    for name in CLIENT_VARIABLES:
        monkeypatch.setenv(name, slurm_cluster.env[name])
    yield slurm_cluster
    slurm_cluster.tidy()


@pytest.fixture
def up(slurm: SlurmCluster) -> Iterator[Up]:
    """Bring up swarms of the test's own; they end with it."""
    from domyn_swarm.services.swarms import SwarmService
    from slurm import swarms  # what it imports is for these tests alone

    started: list[str] = []

    def bring(*, wait: bool = True, **keys: Any) -> SwarmService:
        made = swarms.config(**keys)
        started.append(str(made.name))
        swarms.bring_up(made, wait=wait)
        return SwarmService()

    yield bring
    for name in started:
        swarms.down(name)


@dataclass(frozen=True)
class Asked:
    """What Slurm's own commands were asked since it was cleared."""

    log: Path

    def of(self, command: str) -> list[str]:
        """The arguments of each call of a command."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.partition(" ")[2] for line in lines if line.split(" ")[0] == command]

    def clear(self) -> None:
        """Begin anew."""
        self.log.unlink(missing_ok=True)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Has Slurm's commands that tell of jobs write down that they were called. Comes after the
    fixture that puts a cluster on PATH.
    """
    log, folder = tmp_path / "asked.log", tmp_path / "asked-bin"
    folder.mkdir()
    for command in ("squeue", "sacct", "scontrol"):
        program = folder / command
        program.write_text(
            f'#!/bin/sh\necho "{command} $*" >> "{log}"\nexec {shutil.which(command)} "$@"\n'
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return Asked(log)
