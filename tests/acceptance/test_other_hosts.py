"""A second host that shares the home of the first: what it shows, what it refuses, what it leaves
alone. Its PID namespace and its name are its own.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from acceptance.conftest import Standing
from command_line import rows_done
from other_hosts import OtherHost, need_namespaces
from patience import until

LOGIN2 = "login2"
# Fewer than the engines have slots: rows that are held leave room for those that are answered.
SUBMITTED = ("--name", "demo", "--max-concurrency", "4", "-d")


def found(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_runs_on_the_first_host_is_shown_and_left_alone_by_the_second(
    standing: Standing,
) -> None:
    need_namespaces()
    cli, job = standing.cli, standing.job("held elsewhere", 30)
    here = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    with standing.sim.held():
        handle = json.loads(cli.ok(*job.submission(*SUBMITTED)))
        until(lambda: rows_done(handle) >= 10)
        where = {"kind": "host", "name": here}
        assert where.items() <= cli.json("status", "demo")["whereabouts"].items()
        job_id = handle["job_id"]
        shown = OtherHost(cli.home, LOGIN2).visit(
            ["swarm", "list", "--json"],
            ["swarm", "list"],
            ["status", "demo", "--json"],
            ["status", "demo"],
            ["swarm", "describe", "demo", "--json"],
            ["job", "list", "--json"],
            ["job", "list"],
            ["job", "status", job_id, "--refresh", "--json"],
            ["job", "wait", job_id, "--timeout", "0.2", "--no-progress"],
            ["db", "prune", "--yes", "--json"],
            ["job", "report", job_id],
        )
        swarms, table, swarm, page, described, jobs, lines, one, waited, pruned, report = shown
        for seen in (found(swarms)["swarms"][0], found(swarm), found(described)["swarm"]):
            assert (seen["name"], seen["phase"], seen["observed"]) == ("demo", "ready", "elsewhere")
            assert {**where, "elsewhere": True}.items() <= seen["whereabouts"].items()
            assert seen["whereabouts"]["known_at"]
        assert [one["state"] for one in found(swarm)["replicas"]] == ["ready", "ready"]
        assert "2/2" in table.stdout
        assert f"local on the host {here}, as of 20" in table.stdout
        assert f"the host {here}; what was known at 20" in page.stdout
        assert {part["observed"] for part in found(described)["parts"]} == {"unknown"}
        [listed] = [one for one in found(jobs)["jobs"] if one["job_id"] == job_id]
        for seen in (listed, found(one)):
            assert seen["status"] == "running"
            assert {**where, "elsewhere": True}.items() <= seen["whereabouts"].items()
        assert f"running on {here} as of 20" in lines.stdout
        assert waited.returncode == 6
        assert "has not ended yet" in waited.stderr
        assert {one["name"] for one in found(pruned)["swarms"]} == set()
        assert any(here in one["why"] for one in found(pruned)["kept"])
        assert report.returncode == 0, report.stderr

        refused = OtherHost(cli.home, LOGIN2).visit(
            ["down", "demo", "-y"],
            ["scale", "demo", "3"],
            ["up", "-c", standing.sim.path],
            ["endpoint", "demo"],
            standing.job("of login2", 2).submission("--name", "demo"),
            ["job", "cancel", job_id],
            ["job", "resume", job_id],
            ["job", "retry-failed", job_id],
        )
        codes = [one.returncode for one in refused]
        assert codes == [4, 4, 3, 4, 4, 4, 3, 3], [one.stderr for one in refused]
        assert all(f"the host {here}" in one.stderr for one in refused), refused
        assert all("Traceback" not in one.stderr for one in [*shown, *refused])
        assert "--forget" in refused[0].stderr

        now = cli.json("status", "demo")
        assert (now["phase"], now["observed"], now["replicas_wanted"]) == ("ready", "ready", 2)
        assert now["whereabouts"]["elsewhere"] is False
        assert cli.json("job", "status", job_id)["status"] == "running"
        assert cli("down", "demo", "--forget", "-y").returncode == 4  # it can be stopped
        assert cli("job", "cancel", job_id, "--forget").returncode == 3
    assert cli("job", "wait", job_id, "--no-progress").returncode == 0
    job.assert_complete()
    [ended] = OtherHost(cli.home, LOGIN2).visit(["job", "status", job_id, "--json"])
    assert (found(ended)["status"], found(ended)["whereabouts"]["elsewhere"]) == (
        "succeeded",
        False,
    )


def test_a_job_of_the_first_host_is_followed_to_its_end_by_its_files(standing: Standing) -> None:
    need_namespaces()
    cli, job = standing.cli, standing.job("held for login2", 30)
    with standing.sim.held():
        handle = json.loads(cli.ok(*job.submission(*SUBMITTED)))
        until(lambda: rows_done(handle) >= 10)
    [waited] = OtherHost(cli.home, LOGIN2).visit(
        ["job", "wait", handle["job_id"], "--no-progress", "--json"]
    )
    assert (waited.returncode, json.loads(waited.stdout)["status"]) == (0, "succeeded")
