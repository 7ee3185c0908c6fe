"""`job submit --dry-run` as it is typed, against a standing swarm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from domyn_swarm.cli.app import app
from domyn_swarm.errors import ConfigError
from patience import until
from schemas import fits

if TYPE_CHECKING:
    from click.testing import Result

    from acceptance.conftest import Standing


def left_behind(standing: Standing) -> tuple[set[Path], str]:
    """The jobs' folders and checkpoints, and what is recorded."""
    home = standing.cli.home
    kept = {path for path in home.rglob("*") if {"jobs", "checkpoints"} & set(path.parts)}
    return kept, told(standing, "job", "list", "--json").stdout


def told(standing: Standing, *arguments: str) -> Result:
    """The command in this process: where only its words and its code matter."""
    runner = CliRunner(env={"DOMYN_SWARM_HOME": str(standing.cli.home)})
    return runner.invoke(app, arguments)


def nothing_runs(standing: Standing) -> bool:
    """Whether the jobs of other tests have ended, and write no file beside the dry run's."""
    listed = standing.cli.json("job", "list", "--refresh")["jobs"]
    return all(one["status"] not in ("pending", "running") for one in listed)


def test_a_dry_run_asks_one_row_and_leaves_nothing(standing: Standing) -> None:
    job = standing.job("rehearsed", 5)
    until(lambda: nothing_runs(standing))
    before = left_behind(standing)
    asked = [*job.submission("--name", "demo"), "--dry-run"]

    printed = standing.cli(*asked)
    assert printed.returncode == 0, printed.stderr
    assert "rehearsed: question number 0" in printed.stdout
    assert "roughly 5 requests" in printed.stdout
    assert printed.stderr == "Nothing was submitted.\n"
    assert standing.sim.asked("rehearsed") == ["rehearsed: question number 0"]

    document = json.loads(standing.cli.ok(*asked, "--json"))
    fits(document, "job submit --dry-run")
    assert (document["swarm"], document["rows_total"]) == ("demo", 5)
    assert document["answer"]["result"]
    assert not job.target.exists()
    assert left_behind(standing) == before


def test_what_a_dry_run_finds_is_its_exit_code(standing: Standing) -> None:
    job = standing.job("unasked", 2)
    named = ["no" if one == "prompt" else one for one in job.submission("--name", "demo")]
    wrong = standing.cli(*named, "--dry-run")
    assert wrong.returncode == 2
    assert "no column 'no'" in wrong.stderr
    missing = standing.cli(*job.submission("--name", "nobody"), "--dry-run")
    assert missing.returncode == 3
    gone = ("--endpoint", "http://127.0.0.1:9", "--model", "m")
    away = standing.cli(*job.submission(*gone), "--dry-run")
    assert away.returncode == 4
    assert "Nothing serves at the endpoint http://127.0.0.1:9" in away.stderr
    url = standing.cli.json("endpoint", "demo")["url"]
    keyless = ("--endpoint", url, "--model", "sim-model")
    failed = standing.cli(*job.submission(*keyless), "--dry-run")
    assert failed.returncode == 6
    assert "The first row failed: HTTP 401" in failed.stderr
    assert "RequestRefused: HTTP 401" in failed.stdout
    none = told(standing, *job.submission("--name", "demo"), "--dry-run", "--limit", "0")
    assert none.exit_code == 0
    assert "nothing was sent" in none.stdout
    for flags in (("--dry-run", "--detach"), ("--dry-run", "--down-after"), ("--json",)):
        refused = told(standing, *job.submission("--name", "demo"), *flags).exception
        assert isinstance(refused, ConfigError)
        assert "`domyn-swarm job submit --help`" in refused.hint
    assert standing.sim.asked("unasked") == []
