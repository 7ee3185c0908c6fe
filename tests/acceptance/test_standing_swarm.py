"""What a running swarm shows, and what it keeps to itself."""

from __future__ import annotations

import json
import random
import re
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

import schemas
from command_line import PROGRAM
from patience import limit_s, until
from process_list import words_of

if TYPE_CHECKING:
    from acceptance.conftest import Standing

SWARM_KEYS = {
    *("schema_version", "name", "phase", "observed", "detail", "backend", "engine", "model"),
    *(
        "endpoint",
        "replicas_wanted",
        "replicas_min",
        "replicas_max",
        "asleep",
        "usage",
        "min_ready",
        "replicas",
        "jobs",
        "expires_at",
        "swarm_dir",
        "created_at",
        "whereabouts",
        "left_out",
    ),
}
REPLICA_KEYS = {
    *("index", "state", "stale", "url", "http_status", "last_seen_s", "restarts", "reason"),
    *("requests_running", "requests_waiting", "prompt_tokens", "generated_tokens", "figures_age_s"),
    *("tokens_per_s", "kv_cache_usage", "node", "expires_at"),
}
ALONE_KEYS = (
    *("model", "job_class", "prompt", "system", "parameters", "retry_parameters"),
    "max_gpu_hours",
)  # null in lists
JOB_KEYS = {
    *("schema_version", "job_id", "external_id", "name", "swarm", "status", "rows_total"),
    *("rows_done", "rows_failed", "rows_per_s", "eta_s", "prompt_tokens", "completion_tokens"),
    *("input", "output", "account", "message", "exit_code", "submitted_at", "ended_at", "log_path"),
    *("verdicts", "remarks", "rows_resumed", "whereabouts", "figures_age_s", "commonest_failure"),
    *("runs", "began_at", "eta_low_s", "eta_high_s", "gpu_hours"),
    *ALONE_KEYS,
}


def both_ready(standing: Standing) -> dict[str, Any]:
    """The status, once both replicas are."""

    def seen() -> dict[str, Any] | None:
        swarm: dict[str, Any] = standing.cli.json("status", "demo")
        ready = [one for one in swarm["replicas"] if one["state"] == "ready" and not one["stale"]]
        return swarm if len(ready) == 2 else None

    found: dict[str, Any] = until(seen)
    return found


def generated(swarm: dict[str, Any]) -> dict[str, Any] | None:
    """The status once every replica has told of its tokens and one has written some."""
    told = [(one["generated_tokens"], one["kv_cache_usage"]) for one in swarm["replicas"]]
    complete = all(None not in one for one in told)
    rates = [one["tokens_per_s"] for one in swarm["replicas"]]
    written = complete and sum(tokens for tokens, _ in told) > 0
    return swarm if written and all(rate is not None and rate >= 0 for rate in rates) else None


def call(url: str, key: str | None = None) -> int:
    """The status of a chat request."""
    body = {"model": "sim-model", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=limit_s()) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return int(refusal.code)


def test_up_and_wait_take_a_swarm_that_is_up_as_it_is(standing: Standing) -> None:
    cli, file = standing.cli, standing.sim.path
    both_ready(standing)
    before = cli.json("swarm", "describe", "demo")["tag"]
    done = cli("up", file)
    assert (done.returncode, done.stdout) == (0, "demo\n"), done.stderr
    assert "nothing was started" in done.stderr
    told = cli.json("up", "-c", file)
    assert (told["ready"], told["launched"]) == (True, False)
    assert cli.ok("wait", "demo") == "demo\n"
    assert cli.json("wait", "demo")["endpoint"] == told["endpoint"]
    for changes in (["-r", "1"], ["--set", "watchdog.max_restarts=9"]):
        refused = cli("up", file, *changes)
        assert (refused.returncode, refused.stdout) == (3, "")
        assert "another configuration" in refused.stderr
    assert cli.json("swarm", "describe", "demo")["tag"] == before


def test_the_keys_of_status_are_a_promise(standing: Standing) -> None:
    cli, job = standing.cli, standing.job("promise", 3)
    handle = json.loads(cli.ok(*job.submission("--name", "demo")))
    both_ready(standing)
    seen = until(lambda: generated(standing.cli.json("status", "demo")))
    assert set(seen) == SWARM_KEYS
    assert seen["schema_version"] == 1
    assert (seen["phase"], seen["observed"]) == ("ready", "ready")
    assert [set(replica) for replica in seen["replicas"]] == [REPLICA_KEYS] * 2
    [mine] = [one for one in seen["jobs"] if one["job_id"] == handle["job_id"]]
    assert set(mine) == JOB_KEYS
    assert (mine["status"], mine["rows_done"], mine["rows_total"]) == ("succeeded", 3, 3)
    alone = cli.json("job", "status", handle["job_id"])
    assert (alone["model"], alone["parameters"]) == ("sim-model", {})
    assert {**alone, **dict.fromkeys(ALONE_KEYS)} == mine
    for shown in (cli.ok("status", "demo"), cli.ok("swarm", "list"), cli.ok("job", "list")):
        assert "demo" in shown
    assert "simulating" in cli.ok("logs", "demo", "0")
    assert cli.ok("swarm", "logs", "demo", "--watchdog", "-n", "1").count("\n") == 2


def test_nobody_is_served_without_the_key(standing: Standing) -> None:
    info = standing.cli.json("endpoint", "demo")
    assert set(info) == {
        *("schema_version", "name", "url", "model", "key_file", "metrics_url", "metrics_key_file"),
    }
    key = Path(info["key_file"]).read_text(encoding="utf-8").strip()
    chat = f"{info['url']}/v1/chat/completions"
    assert call(chat) == 401
    assert call(chat, "wrong") == 401
    assert call(chat, key) == 200
    for replica in both_ready(standing)["replicas"]:
        assert call(f"{replica['url']}/v1/chat/completions") == 401

    exports = standing.cli.ok("endpoint", "demo", "--env")
    assert key not in exports
    shown = subprocess.run(
        ["bash", "-c", f'{exports}\necho "$OPENAI_API_KEY $OPENAI_BASE_URL"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"{key} {info['url']}/v1\n"
    assert key in standing.cli.ok("endpoint", "demo", "--env", "--show-key")


def test_keys_stand_in_no_place_that_others_read(standing: Standing) -> None:
    cli, job = standing.cli, standing.job("secret", 20)
    submitted = cli(*job.submission("--name", "demo"))
    assert submitted.returncode == 0
    secrets = cli.home / "swarms" / "demo" / "secrets"
    keys = [path.read_bytes().strip() for path in secrets.iterdir()]
    assert len(set(keys)) == 2
    assert all(len(key) >= 32 for key in keys)
    modes = {path.stat().st_mode & 0o777 for path in cli.home.rglob("secrets/*")}
    assert modes == {0o600}  # of other swarms too: one was given the same key
    assert (cli.home / "swarm.db").stat().st_mode & 0o777 == 0o600

    files = [path for path in cli.home.rglob("*") if path.is_file()]
    places = [path for path in files if path.parent.name != "secrets"]
    assert {"swarm.db", "plan.json", "job.json", "engine.log"} <= {path.name for path in places}
    told = [" ".join(words_of(one)).encode() for one in cli.processes()]
    assert told
    printed = (submitted.stdout + submitted.stderr).encode()
    for key in keys:
        assert [path for path in places if key in path.read_bytes()] == []
        assert [line for line in told if key in line] == []
        assert key not in printed


def test_the_job_class_of_the_readme_runs(standing: Standing) -> None:
    readme = Path(__file__).parents[2] / "README.md"
    [source] = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    (standing.folder / "shouting.py").write_text(source, encoding="utf-8")
    job = standing.job("quiet", 5)
    submission = job.submission("shouting:Shout", "--name", "demo")
    done = subprocess.run(
        [PROGRAM, *submission],
        cwd=standing.folder,
        env=standing.cli.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = pq.read_table(job.target).to_pylist()
    assert len(answers) == 5
    assert all(row["shouted"] for row in answers)
    assert len(standing.sim.asked("Say it louder: quiet")) == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_that_begin_alike_are_asked_together_and_written_in_order(
    standing: Standing, workers: int
) -> None:
    """What came of it stands with the job, and in its report."""
    job = standing.job(f"alike by {workers}", 120)
    draw = random.Random(workers)
    documents = ["".join(draw.choices("abcdefgh ", k=700)) for _ in range(20)]
    table = pq.read_table(job.source)
    questions = [f"{draw.choice(documents)}: {row['prompt']}" for row in table.to_pylist()]
    pq.write_table(table.set_column(1, "prompt", [questions]), job.source)
    words = job.submission("--name", "demo", "--workers", str(workers))
    handle = json.loads(standing.cli.ok(*words))
    job.assert_complete()
    status = standing.cli.json("job", "status", handle["job_id"])
    schemas.fits(status, "job status")
    sent = status["account"]["dispatch"]
    sizes = Counter(text[:700] for text in questions)
    several = [count for count in sizes.values() if count > 1]
    assert (sent["groups"], sent["rows_grouped"]) == (len(several), sum(several))
    requests = [sent[name] for name in ("requests_known", "requests_new", "requests_moved")]
    assert sum(requests) <= 120  # while a worker knows one replica only, it looks at none
    assert sent["requests_new"] <= workers * len(sizes)
    page = standing.folder / f"alike-{workers}.html"
    standing.cli.ok("job", "report", handle["job_id"], "--output", str(page))
    shown = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    assert f"{sum(several)} in {len(several)} groups, asked one after the other." in shown


def test_a_refused_row_carries_its_error_and_the_job_ends_with_7(standing: Standing) -> None:
    job = standing.job("refused here", 4)
    before = len(standing.sim.asked("refused here: question number 1"))
    done = standing.cli(*job.submission("--name", "demo"))
    assert done.returncode == 7, done.stderr
    assert "1 failed" in done.stderr
    answers = pq.read_table(job.target).to_pylist()
    assert [row["result"] is None for row in answers] == [False, True, False, False]
    assert answers[1]["_error"]["status"] == 400
    assert [row["_error"] is None for row in answers] == [True, False, True, True]
    asked = len(standing.sim.asked("refused here: question number 1"))
    assert asked == before + 1  # never repeated
    failures = standing.cli.json("job", "failures", json.loads(done.stdout)["job_id"])
    schemas.fits(failures, "job failures")
    assert [group["rows"] for group in failures["groups"]] == [1]
