"""Command lines that clean up behind themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line import CommandLine, Job, SimConfig, write_job, write_sim_config
from patience import scaled


@pytest.fixture
def cli(swarm_home: Path) -> Iterator[CommandLine]:
    """A command line with a home of its own; afterwards everything is down and nothing runs."""
    line = CommandLine(swarm_home)
    yield line
    line.clean_up()


@dataclass(frozen=True)
class Standing:
    """The swarm `demo`, which several tests use and none stops."""

    cli: CommandLine
    sim: SimConfig
    folder: Path

    def job(self, topic: str, count: int) -> Job:
        """A job that no other test has submitted."""
        return write_job(self.folder, topic, count)


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """Two simulated replicas, up for the whole session."""
    folder = tmp_path_factory.mktemp("standing")
    line = CommandLine(folder / "home")
    sim = write_sim_config(folder, replicas=2, latency_s=scaled(0.1))
    done = line.installed("up", "-c", sim.path)  # the first run of a fresh home
    assert (done.returncode, done.stdout) == (0, "demo\n"), done.stderr
    yield Standing(line, sim, folder)
    line.clean_up()
