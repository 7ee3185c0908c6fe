"""What the command line says of answers that are not complete, and how it asks for them again."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from domyn_swarm.cli.app import app
from domyn_swarm.cli.candidates import verdicts
from domyn_swarm.cli.job_views import account_text
from domyn_swarm.errors import ConfigError
from domyn_swarm.model import JobAccount
from model_server import KEY, Answer
from terminal import screen

CUT = {"message": {"content": "half"}, "text": "half", "finish_reason": "length"}


def run(*words: object) -> Result:
    return CliRunner(env={"DOMYN_SWARM_API_TOKEN": KEY}).invoke(app, [*map(str, words)])


def submission(bench: Any, *more: object) -> list[object]:
    source, target = bench.folder / "in.parquet", bench.folder / "out.parquet"
    where = ["--endpoint", bench.server.url, "--model", "m", "--no-progress"]
    rows = ["--input", source, "--output", target, "--input-column", "prompt"]
    return ["job", "submit", *more, *where, *rows]


def test_answers_that_are_not_complete_are_told_and_asked_again(bench: Any) -> None:
    bench.write(6)
    bodies = {"p1": {"choices": [CUT]}, "p2": {"choices": [CUT]}, "p4": {"choices": []}}
    bench.server.behave = lambda prompt, _nth: Answer(body=bodies.get(prompt))
    completions = "domyn_swarm.jobs:CompletionJob"
    done = run(*submission(bench, completions, "--external-id", "mine", "--retries", 0))
    assert done.exit_code == 7, done.output
    job_id = json.loads(done.stdout)["job_id"]
    assert "answers: 3 complete, 2 cut, 1 error; `domyn-swarm job retry-failed" in done.stderr
    assert f"{job_id} --class cut,error` asks those again" in done.stderr
    assert "2 answers were cut by the server's own token limit" in done.stderr
    assert "16 tokens" in done.stderr
    shown = run("job", "status", "mine").stdout
    assert "3 complete, 2 cut, 1 error" in shown
    assert "16 tokens" in shown
    assert json.loads(run("job", "status", "mine", "--json").stdout)["verdicts"]["cut"] == 2
    assert "cut, kept" in run("job", "failures", "mine").stdout

    bench.server.asked.clear()
    bench.server.behave = lambda _prompt, _nth: Answer()
    kwargs = '{"max_tokens": 100}'
    again = run("job", "retry-failed", job_id, "--class", "cut,error", "--job-kwargs", kwargs)
    assert again.exit_code == 0, again.output
    assert set(bench.server.asked) == {"p1", "p2", "p4"}
    assert "answers:" not in again.stderr  # all are complete

    nothing = run("job", "retry-failed", job_id)
    assert (nothing.stdout, nothing.exit_code) == ("", 0)
    assert "no row of CompletionJob has failed. Nothing was started." in nothing.stderr
    wrong = run("job", "retry-failed", job_id, "--class", "short")
    assert isinstance(wrong.exception, ConfigError)
    assert "cut, empty, refused, tool_calls, error" in wrong.exception.hint
    bad = run(*submission(bench, "--accept", "nothing"))
    assert isinstance(bad.exception, ConfigError)
    assert "complete" in bad.exception.message


def test_a_job_whose_rows_failed_says_why_wherever_it_is_looked_at(bench: Any) -> None:
    bench.write(3)
    bench.server.behave = lambda _prompt, _nth: Answer(status=400)
    done = run(*submission(bench, "--external-id", "mine"))
    assert done.exit_code == 7, done.output
    job_id = json.loads(done.stdout)["job_id"]
    command = f"`domyn-swarm job failures {job_id}` shows every cause"
    looks = ["job status mine", "job list", "job logs mine"]
    for shown in (done.output, *(run(*words.split()).output for words in looks)):
        told = " ".join(shown.split())
        assert "no row was answered; 3 of 3 failed rows, such as row" in told
        assert "HTTP 400" in told
        assert command in told
    logs = run("job", "logs", "mine")
    assert (logs.stdout, "Nothing is in" in logs.stderr) == ("", True)
    listed = json.loads(run("job", "list", "--json").stdout)["jobs"][0]["commonest_failure"]
    assert (listed["rows"], listed["status"]) == (3, 400)


def test_a_job_that_has_ended_is_not_called_cancelled(bench: Any) -> None:
    bench.write(1)
    assert run(*submission(bench, "--external-id", "mine")).exit_code == 0
    done = run("job", "cancel", "mine")
    assert (done.exit_code, "succeeded" in done.stdout) == (0, True)
    assert "has ended already: nothing was cancelled." in done.stderr


def test_a_terminal_gets_the_id_and_what_to_type_next(bench: Any) -> None:
    bench.write(2)
    environment = {**os.environ, "DOMYN_SWARM_API_TOKEN": KEY}
    shown = screen(submission(bench, "--external-id", "mine"), environment)
    job_id = json.loads(run("job", "status", "mine", "--json").stdout)["job_id"]
    assert shown.splitlines()[0] == job_id
    assert f"domyn-swarm job cancel {job_id}" in shown
    assert "schema_version" not in shown


def test_a_run_that_gave_up_advises_what_helps(bench: Any) -> None:
    bench.write(30)
    bench.server.behave = lambda _prompt, _nth: Answer(status=401)
    done = run(*submission(bench, "--max-concurrency", 1))
    assert done.exit_code == 6, done.output
    job_id = json.loads(done.stdout)["job_id"]
    assert f"`domyn-swarm job resume {job_id}` asks the rows that are left" in done.stderr
    assert "retry-failed" not in done.stderr
    assert done.stderr.count("HTTP 401") == 1
    assert "OPENAI_API_KEY" in done.stderr
    shown = run("job", "failures", job_id)
    assert "401" in shown.stdout
    assert "5 rows failed as a run gave up" in shown.stderr
    assert (
        f"30 rows are not settled; once the job has ended, `domyn-swarm job resume {job_id}`"
        in (shown.stderr)
    )
    assert "retry-failed" not in shown.stderr

    bench.server.behave = lambda prompt, _nth: Answer(status=400 if prompt == "p3" else 200)
    assert run("job", "resume", job_id).exit_code == 7
    shown = run("job", "failures", job_id)
    assert f"1 row failed; `domyn-swarm job retry-failed {job_id}`" in shown.stderr
    assert "not settled" not in shown.stderr


@pytest.mark.parametrize(("accept", "code"), [("any", 0), ("complete", 7)])
def test_a_dry_run_says_what_the_answer_is(bench: Any, accept: str, code: int) -> None:
    bench.write(1)
    bench.server.behave = lambda _prompt, _nth: Answer(body={"choices": [CUT]})
    completions = "domyn_swarm.jobs:CompletionJob"
    tried = run(*submission(bench, completions, "--accept", accept, "--dry-run"))
    assert tried.exit_code == (6 if code else 0)
    assert "cut; 0 tokens in" in tried.stdout
    assert "1 answer was cut by the server's own token limit" in tried.stdout
    told = json.loads(run(*submission(bench, "--accept", accept, "--dry-run", "--json")).stdout)
    assert (told["verdict"], told["error"] is None) == ("cut", accept == "any")


def test_classes_are_completed_one_by_one() -> None:
    assert [name for name, _ in verdicts("e")] == ["empty", "error"]
    assert [name for name, _ in verdicts("empty,")] == [
        *("empty,cut", "empty,refused", "empty,tool_calls", "empty,error")
    ]


def test_latency_is_called_the_median_and_what_is_in_it() -> None:
    counts = dict.fromkeys(("retries", "turned_away", "lost_in_flight", "rows_failed"), 0)
    tokens = {"prompt_tokens": 9, "completion_tokens": 30, "completion_tokens_per_s": 15.0}
    times = {"latency_p50_s": 0.4, "latency_p90_s": 0.9, "latency_p99_s": 1.1}
    told = {"runs": 1, "wall_s": 2.0, "rows_answered": 3, "requests": 3, "rows_per_s": 1.5}
    assert account_text(JobAccount.model_validate({**counts, **tokens, **times, **told})) == (
        "3 requests in 2.0 s, 1.5 rows/s, 15 tokens/s, "
        "median latency 0.40 s, the server's queue included (99 %: 1.10 s)"
    )
