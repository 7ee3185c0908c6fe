"""What a run keeps of its requests beside sums."""

from __future__ import annotations

from typing import Any

import pytest

from domyn_swarm.batch.checkpoint.accounting import read_accounts
from domyn_swarm.batch.outcomes.histograms import (
    LatencyHistogram,
    ReplicaShare,
    ReplicaShares,
    SizeHistogram,
    SlowestRows,
    SlowRow,
)
from domyn_swarm.batch.outcomes.tally import Replies, failure_signature
from domyn_swarm.jobs.worker import main
from domyn_swarm.model import JobProgress


def test_sizes_are_counted_by_powers_of_two_and_told_by_any_bounds() -> None:
    sizes = SizeHistogram()
    sizes.add((0, 1, 2, 3, 4, 5, 16, 17, 4096, 70_000))
    told = sizes.within((1.0, 4.0, 16.0, 64.0, 4096.0), 74_144)
    assert told.counts == (2, 3, 2, 1, 1, 1)
    assert told.total == 74_144


def test_a_latency_is_told_by_other_bounds_within_five_percent() -> None:
    latency = LatencyHistogram()
    latency.add((0.001, 0.0094, 0.5, 0.6, 100.0))
    assert latency.within((0.01, 0.64, 50.0), 101.1).counts == (2, 2, 0, 1)


def test_replies_are_added_up_whenever_somebody_looks() -> None:
    replies = Replies()
    for number in range(2500):
        replies.count(0.25, number, 2, None if number % 5 == 0 else f"r{number % 2}")
        if number == 10:
            assert replies.sums.prompt_tokens == sum(range(11))
    sums = replies.sums
    assert (sums.prompt_tokens, sums.completion_tokens) == (sum(range(2500)), 5000)
    assert sums.latency_s == 625.0
    assert sums.latency.counts == {160: 2500}
    assert sums.prompt_sizes.counts.total() == sums.completion_sizes.counts.total() == 2500
    shares = sums.replicas
    assert {name: share.answers for name, share in shares.items()} == {"r0": 1000, "r1": 1000}
    assert shares["r1"].prompt_tokens == sum(one for one in range(1, 2500, 2) if one % 5)
    assert shares["r1"].latency_s == 250.0


def test_only_the_slowest_rows_are_kept_and_each_once() -> None:
    slowest = SlowestRows()
    for number in range(1000):
        row = SlowRow(float(number % 500), number, 1, 0, failed=False)
        if row.latency_s > slowest.floor_s:
            slowest.add(row)
    kept = slowest.rows
    assert [row.latency_s for row in kept] == [499 - n // 2 for n in range(20)]
    slowest.merge(kept)
    assert slowest.rows == kept


def test_replicas_without_number_are_one() -> None:
    shares = ReplicaShares()
    for number in range(5000):
        shares[f"http://n{number}:8000"].answers += 1
    assert len(shares) == 4097
    assert shares["other"].answers == 5000 - 4096
    both = ReplicaShares()
    both.add(shares)
    both.add({"other": ReplicaShare(answers=1000)}, {"other": ReplicaShare(answers=904)})
    assert both["other"].answers == 1000


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_keeps_who_answered_and_what_was_slow(bench: Any, answer: Any, workers: int) -> None:
    bench.write(60)
    slow = {"p7", "p31"}

    def behave(prompt: str, _nth: int) -> Any:
        replica = f"http://replica:{int(prompt[1:]) % 3}"
        headers = {"x-smg-routed-worker-id": replica}
        if prompt == "p5":
            return answer(status=400)
        return answer(delay_s=0.5 if prompt in slow else 0.0, headers=headers)

    bench.server.behave = behave
    assert main([str(bench.job_folder(bench.spec(max_concurrency=4, workers=workers)))]) == 7
    checkpoint = bench.checkpoint
    [run] = read_accounts(checkpoint)
    assert run.began_at is not None
    counted = run.counters
    shares = {url[-1]: share.answers for url, share in counted.replicas.items()}
    assert shares == {"0": 20, "1": 20, "2": 19}
    assert sum(one.latency_s for one in counted.replicas.values()) == pytest.approx(
        counted.latency_s
    )
    assert {row.row for row in counted.slowest[:2]} == {7, 31}
    assert all(row.latency_s >= 0.5 for row in counted.slowest[:2])
    assert len(counted.slowest) == 20
    progress = JobProgress.model_validate_json((bench.folder / "job/progress.json").read_text())
    assert progress.checkpoint == str(checkpoint)
    assert (progress.run_answered, progress.run_failed, progress.model) == (59, 1, "m")
    assert progress.latency_s is not None
    assert sum(progress.latency_s.counts) == 59
    assert progress.completion_sizes is not None
    assert progress.completion_sizes.total == progress.completion_tokens


@pytest.mark.parametrize(
    ("message", "signature"),
    [
        ("HTTP 401: key 4711 is unknown", "E: HTTP 401: key # is unknown"),
        ("no reply within 2.5 s (17)", "E: no reply within 2.5 s (#)"),
        ("row 17 of 300 s", "E: row # of # s"),
        ("xHTTP 4012: 1", "E: xHTTP #: #"),
    ],
)
def test_a_cause_keeps_the_numbers_that_are_part_of_it(message: str, signature: str) -> None:
    assert failure_signature("E", message) == signature
