"""`job preview` as it is typed, on a terminal and elsewhere, against a standing swarm."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from command_line import PROGRAM
from schemas import fits
from terminal import Terminal

if TYPE_CHECKING:
    from acceptance.conftest import Standing


def test_a_terminal_is_asked_and_the_full_run_asks_the_rest(standing: Standing) -> None:
    job = standing.job("previewed", 14)
    typed = ["job", "preview", *job.submission("--name", "demo")[2:]]
    with Terminal([PROGRAM, *map(str, typed)], standing.cli.environment) as terminal:
        terminal.until("full run? [y/N]")
        assert "A full run asks 4 of 14 rows, roughly" in " ".join(terminal.text.split())
        assert "previewed: question number 9" in " ".join(terminal.text.split())
        terminal.press("n\n")
        assert terminal.ended() == 1
    assert len(standing.sim.asked("previewed")) == 10
    assert not job.target.exists()
    with Terminal([PROGRAM, *map(str, typed)], standing.cli.environment) as terminal:
        terminal.until("full run? [y/N]")
        terminal.press("y\n")
        assert terminal.ended() == 0
    questions = [f"previewed: question number {number}" for number in range(14)]
    assert sorted(standing.sim.asked("previewed")) == sorted(questions)
    assert job.target.exists()


def test_elsewhere_it_stops_there_unless_it_is_to_go_on(standing: Standing) -> None:
    job = standing.job("piped", 4)
    typed = ["job", "preview", *job.submission("--name", "demo")[2:]]
    document = json.loads(standing.cli.ok(*typed, "--json", "-n", "2"))
    fits(document, "job preview")
    assert len(standing.sim.asked("piped")) == 2
    both = standing.cli(*typed, "--json", "-y")
    assert (both.returncode, "leave --json" in both.stderr) == (2, True)
    shown = standing.cli(*typed, "-n", "2")
    assert (shown.returncode, shown.stdout.split()[0]) == (0, "row")
    assert "No job was submitted" in shown.stderr
    assert not job.target.exists()
    gone_on = standing.cli(*typed, "-y", "--no-progress", "--time", "60")
    assert gone_on.returncode == 0, gone_on.stderr
    assert "ends after 60 min (--time)" in gone_on.stderr
    assert json.loads(gone_on.stdout.splitlines()[-1])["job_id"]
    assert len(standing.sim.asked("piped")) == 4
    standing.cli.ok(*typed, "-y", "--no-progress", "--no-resume", "-n", "2")
    assert len(standing.sim.asked("piped")) == 8
