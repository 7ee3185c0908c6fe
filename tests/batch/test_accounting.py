"""What a job cost, over all its runs; what it may cost before it stops by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

import warm
from domyn_swarm.batch.checkpoint.accounting import read_accounts, sum_up
from domyn_swarm.batch.outcomes.histograms import LatencyHistogram
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.standing import FREE_RETRIES, FailureLimit
from domyn_swarm.jobs.worker import main
from patience import until


def result(bench: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bench.folder / "job" / "result.json").read_text())
    return found


def test_a_run_accounts_for_requests_tokens_and_time(bench: Any, answer: Any) -> None:
    bench.write(100)
    bench.server.behave = lambda prompt, nth: answer(
        status=500 if (prompt, nth) == ("p3", 1) else 200, delay_s=0.02
    )
    assert main([str(bench.job_folder(bench.spec(max_concurrency=10)))]) == 0
    account = result(bench)["account"]
    assert (account["runs"], account["rows_answered"], account["rows_failed"]) == (1, 100, 0)
    assert (account["requests"], account["retries"]) == (101, 1)
    assert account["prompt_tokens"] > 0
    assert account["completion_tokens_per_s"] > 0
    assert 0.02 <= account["latency_p50_s"] <= account["latency_p99_s"]
    assert 0 < account["rows_per_s"] < 500


@pytest.mark.parametrize("workers", [1, 2])
def test_the_runs_of_a_job_add_up_and_a_kill_is_seen(bench: Any, answer: Any, workers: int) -> None:
    bench.write(600)  # of which 100 a second are answered
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.1)
    folder = bench.job_folder(bench.spec(max_concurrency=10, workers=workers))
    job = warm.start_worker(folder)
    until(lambda: bench.server.answered.total() >= 400, every_s=0.01)
    job.kill()
    job.wait()
    assert main([str(folder)]) == 0
    account = result(bench)["account"]
    assert account["runs"] == 2
    assert 0 < account["lost_in_flight"] <= 10
    # not known of the killed run: its last second, and what workers had not told yet
    assert 400 <= account["rows_answered"] <= 600
    asked = bench.server.asked.total()
    assert asked - 220 <= account["requests"] <= asked


def test_the_course_of_a_run_is_kept(bench: Any, answer: Any) -> None:
    bench.write(300)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.1)
    assert main([str(bench.job_folder(bench.spec(max_concurrency=12)))]) == 0
    lines = (bench.folder / "job" / "trace.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    assert len(points) >= 2
    assert [point["limit"] for point in points[1:]] == [12] * (len(points) - 1)
    assert max(point["in_flight"] for point in points) == 12
    done = [point["rows_done"] for point in points]
    assert done == sorted(done)


def test_a_torn_account_is_left_out(bench: Any) -> None:
    bench.write(5)
    assert main([str(bench.job_folder(bench.spec()))]) == 0
    checkpoint = bench.checkpoint
    (checkpoint / "run-000009.json").write_text('{"job_id": "x", "coun')
    assert len(read_accounts(checkpoint)) == 1
    assert sum_up([]).rows_per_s is None


def test_histograms_add_up() -> None:
    one, other, both = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
    for number in range(1, 101):
        (one if number % 3 else other).add((number / 100,))
        both.add((number / 100,))
    one.merge(other.counts)
    for share in (0.1, 0.5, 0.99):
        assert one.quantile(share) == both.quantile(share)
        assert both.quantile(share) == pytest.approx(share, rel=0.06)


def test_a_run_whose_requests_are_hardly_ever_answered_stops() -> None:
    tally = Tally(rows_answered=700, requests=2 * FREE_RETRIES)
    for _ in range(FREE_RETRIES):
        tally.count_retry("ServerError", "500 from 10.0.0.7")
    assert FailureLimit().reason_to_stop(tally) is None
    for _ in range(1200):
        tally.requests += 1
        tally.count_retry("ServerError", "500 from 10.0.0.7")
    why = FailureLimit().reason_to_stop(tally)
    assert why is not None
    assert "2200 of 3200 requests had to be repeated" in str(why)
    assert "ServerError: # from #.#.#.#" in str(why)


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_that_failed_are_asked_again_with_other_parameters(
    bench: Any, answer: Any, workers: int
) -> None:
    bench.write(60)
    short = {f"p{number}" for number in (3, 17, 59)}

    def behave(prompt: str, _nth: int) -> Any:
        allowed = bench.server.bodies[-1].get("max_tokens", 0)
        return answer(status=400 if prompt in short and allowed < 100 else 200)

    bench.server.behave = behave
    spec = bench.spec(job_kwargs={"max_tokens": 10}, max_concurrency=1, workers=workers)
    assert main([str(bench.job_folder(spec))]) == 7
    again = spec.model_copy(update={"retry_failed": True, "override": {"max_tokens": 500}})
    assert main([str(bench.job_folder(again))]) == 0
    assert bench.server.asked.total() == 63
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in range(60)]
    checkpoint = bench.checkpoint
    assert [run.override for run in read_accounts(checkpoint)] == [{}, {"max_tokens": 500}]
    assert main([str(bench.job_folder(spec))]) == 0  # the job as it was: nothing left to ask
    assert bench.server.asked.total() == 63


def test_other_parameters_may_not_change_the_columns(bench: Any) -> None:
    bench.write(3)
    spec = bench.spec(output_columns=())
    assert main([str(bench.job_folder(spec))]) == 0
    changed = {"retry_failed": True, "override": {"parse_reasoning": True}}
    assert main([str(bench.job_folder(spec.model_copy(update=changed)))]) == 2
    assert "would change the output's columns" in result(bench)["error"]


def test_what_a_killed_worker_did_not_report_is_done_once_it_is_published() -> None:
    tally = Tally(rows_total=10, rows_resumed=3, rows_answered=5, rows_failed=1)
    assert tally.rows_done == 9
    tally.published(2, {})
    assert (tally.rows_done, tally.all_failed) == (10, 2)
