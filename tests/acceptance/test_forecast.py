"""`job submit --forecast` and `plan --job` as they are typed, against a standing swarm: what the
sample asked is not asked again. And `rehearse`, which asks nobody.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import PROGRAM, CommandLine
from schemas import fits
from terminal import Terminal

if TYPE_CHECKING:
    from acceptance.conftest import Standing


def test_a_terminal_is_asked_and_the_full_run_asks_the_rest(standing: Standing) -> None:
    job = standing.job("forecast", 30)
    typed = [*job.submission("--name", "demo"), "--forecast"]
    with Terminal([PROGRAM, *map(str, typed)], standing.cli.environment) as terminal:
        terminal.until("full run? [y/N]")
        shown = " ".join(terminal.text.split())
        assert "15 of 30" in shown
        assert "(now)" in shown
        terminal.press("n\n")
        assert terminal.ended() == 1
    sampled = standing.sim.asked("forecast")
    assert (len(sampled), job.target.exists()) == (15, False)
    assert sorted(sampled) != [f"forecast: question number {at}" for at in range(15)]
    with Terminal([PROGRAM, *map(str, typed), "--sample", "5"], standing.cli.environment) as again:
        again.until("full run? [y/N]")
        again.press("y\n")
        assert again.ended() == 0
    asked = standing.sim.asked("forecast")
    assert sorted(asked) == sorted(f"forecast: question number {at}" for at in range(30))
    job.assert_complete()


def test_elsewhere_it_stops_there_unless_it_is_to_go_on(standing: Standing) -> None:
    job = standing.job("foreseen", 40)
    typed = [*job.submission("--name", "demo", "--max-concurrency", "4"), "--forecast"]
    found = json.loads(standing.cli.ok(*typed, "--json"))
    fits(found, "job submit --forecast")
    assert (found["rows_asked"], found["rows_left"], found["rows_settled"]) == (20, 20, 20)
    assert found["replicas"] == 2
    by_replicas = {one["replicas"]: one for one in found["choices"]}
    assert {1, 2, 4} <= by_replicas.keys()
    assert by_replicas[1]["duration_s"] >= by_replicas[2]["duration_s"]
    for one in found["choices"]:
        assert one["duration_low_s"] <= one["duration_s"] <= one["duration_high_s"]
        assert (one["gpu_hours"], one["start"]) == (None, None)  # without GPUs and scheduler
    assert found["completion_tokens_left"] > 0
    both = standing.cli(*typed, "--json", "-y")
    assert (both.returncode, "leave --json" in both.stderr) == (2, True)
    alone = standing.cli(*typed[:-1], "--sample", "5")
    assert (alone.returncode, "--forecast" in alone.stderr) == (2, True)
    assert not job.target.exists()
    gone_on = standing.cli(*typed, "-y", "--no-progress")
    assert gone_on.returncode == 0, gone_on.stderr
    assert len(standing.sim.asked("foreseen")) == 40
    job.assert_complete()
    over = json.loads(standing.cli.ok(*typed, "--json"))
    assert (over["rows_asked"], over["rows_left"], over["choices"]) == (0, 0, [])


def test_a_plan_says_what_a_job_takes_and_submits_nothing(standing: Standing) -> None:
    job = standing.job("planned", 24)
    file = standing.folder / "planned.yaml"
    file.write_text(
        f"input: {job.source}\noutput: {job.target}\nswarm: demo\ninput_columns: [prompt]\n"
        "id_column: id\n",
        encoding="utf-8",
    )
    found = json.loads(standing.cli.ok("plan", "--job", file, "--json"))
    fits(found, "job submit --forecast")
    assert found["rows_left"] == 12
    shown = standing.cli.ok("plan", standing.sim.path, "--job", file)
    assert "engine's command" in shown
    assert "rows left" in shown
    assert not job.target.exists()
    jobs = standing.cli.json("job", "list")["jobs"]
    assert str(job.target) not in [one["output"] for one in jobs]


def test_a_job_whose_rows_all_fail_is_not_gone_on_with(standing: Standing) -> None:
    job = standing.job("futile", 6)
    prompt = "refused here: question number 1"
    pq.write_table(pa.table({"id": list(range(6)), "prompt": [prompt] * 6}), job.source)
    done = standing.cli(*job.submission("--name", "demo"), "--forecast", "-y")
    assert (done.returncode, "All 3 rows of the sample failed" in done.stderr) == (6, True)
    assert not job.target.exists()


def test_a_sample_that_nobody_would_keep_is_refused(standing: Standing) -> None:
    job = standing.job("unkept", 6)
    done = standing.cli(*job.submission("--name", "demo"), "--forecast", "--no-checkpointing")
    assert (done.returncode, "A forecast keeps the answers" in done.stderr) == (2, True)
    assert standing.sim.asked("unkept") == []


SLURM = """\
name: campaign
model: org/model
gpus_per_replica: 4
replicas: 8
backend: {type: slurm, partition: main, container: none, time_limit: "12:00:00"}
"""
PAST = """\
Submit|Start|ElapsedRaw|State
2026-11-01T10:00:00|2026-11-01T10:05:00|36000|TIMEOUT
2026-11-01T10:00:00|2026-11-01T11:00:00|18000|PREEMPTED
2026-11-01T10:00:00|Unknown|0|PENDING
"""


def test_a_campaign_is_rehearsed_without_a_cluster(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "swarm.yaml").write_text(SLURM, encoding="utf-8")
    (tmp_path / "past").write_text(PAST, encoding="utf-8")
    typed = ("rehearse", "-c", tmp_path / "swarm.yaml", "--rows", "500000")
    found = cli.json(*typed, "--time", "24h", "--history", tmp_path / "past")
    fits(found, "rehearse")
    assumed, result = found["assumptions"], found["result"]
    assert (assumed["replicas"], assumed["gpus_per_replica"]) == (8, 4)
    assert assumed["limit_s"] == [43200.0, 43200.0]
    assert assumed["wait_s"] == [300.0, 3600.0]
    assert round(assumed["preempted_per_h"] * 15, 9) == 1
    assert (result["ended"], result["rows_settled"]) == ("settled", 500_000)
    assert len(found["alternatives"]) == 5
    assert cli.json(*typed) == cli.json(*typed)
    shown = cli.ok(*typed, "--preempted", "0.05", "--time-limit", "4h/24h")
    assert "GPU-hours" in shown
    assert "lost: starting" in shown
    assert "time limit doubled" in shown


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--time-limit", "24h/4h"], "the shorter one first"),
        (["--time-limit", "6m"], "never serves"),
        (["--wait", "soon"], "--wait"),
        (["--history", "nowhere"], "cannot be read"),
        (["--history", "swarm.yaml"], "names no column Submit"),
        (["--max-gpu-hours", "0"], "must be a number above 0, such as 100 or 0.5"),
        (["--max-gpu-hours", "nan"], "must be a number above 0, such as 100 or 0.5"),
        (["--row-seconds", "inf"], "--row-seconds"),
        (["--preempted", "inf"], "--preempted"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(
    cli: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("swarm.yaml").write_text(SLURM, encoding="utf-8")
    done = cli("rehearse", "-c", "swarm.yaml", "--rows", "1000", *more)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_that_an_elastic_swarm_is_rehearsed_at_one_size_is_said(
    cli: CommandLine, tmp_path: Path
) -> None:
    text = SLURM + "replicas: {min: 0, max: 8}\n"
    lines = [one for one in text.splitlines() if not one.startswith("replicas: 8")]
    (tmp_path / "swarm.yaml").write_text("\n".join(lines), encoding="utf-8")
    done = cli("rehearse", "-c", tmp_path / "swarm.yaml", "--rows", "1000")
    assert done.returncode == 0
    assert "is elastic: 8 replicas are rehearsed" in done.stderr
