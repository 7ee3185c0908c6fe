"""Jobs after the first try: failures, asking them again, going on elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from domyn_swarm.errors import JobError, StateError
from domyn_swarm.model import JobStatus
from domyn_swarm.services.jobs import JobService
from patience import scaled, until


def test_failed_rows_are_grouped_exported_and_asked_again_alone(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(30)
    bad = {"p3": 400, "p7": 400, "p20": 500}
    bench.server.behave = lambda prompt, _nth: answer(status=bad.get(prompt, 200))
    service.submit(bench.request())
    assert service.wait("mine").status is JobStatus.PARTIAL

    exported = bench.folder / "failed.parquet"
    failures = service.failures("mine", export=exported)
    assert failures.rows_failed == 3
    assert [(group.rows, group.status, group.example_row) for group in failures.groups] == [
        (2, 400, 3),
        (1, 500, 20),
    ]
    assert failures.groups[0].example_message == "HTTP 400: status 400 for p3"
    rows = pq.read_table(exported).to_pylist()
    assert [row["prompt"] for row in rows] == ["p3", "p7", "p20"]
    assert rows[2]["_error"]["status"] == 500

    bench.server.asked.clear()
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p7" else 200)
    again = service.retry_failed("mine")
    assert service.wait(again).status is JobStatus.PARTIAL
    assert set(bench.server.asked) == set(bad)
    assert service.failures(again).rows_failed == 1
    output = bench.output()
    assert [row["answer"] for row in output if row["prompt"] != "p7"] == [
        f"P{number}" for number in range(30) if number != 7
    ]
    assert output[7]["_error"]["status"] == 400

    bench.server.asked.clear()
    bench.server.behave = lambda _prompt, _nth: answer()
    assert service.wait(service.retry_failed(again)).status is JobStatus.SUCCEEDED
    assert set(bench.server.asked) == {"p7"}
    assert "_error" not in pq.read_schema(bench.folder / "out.parquet").names
    assert service.failures("mine").groups == ()


def test_a_cancelled_job_is_resumed(service: JobService, bench: Any, answer: Any) -> None:
    bench.write(300)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=scaled(0.1))
    bench.server.answers_at_most = 20
    handle = service.submit(bench.request(max_concurrency=8))
    until(lambda: bench.server.answered.total() == 20)
    with pytest.raises(StateError, match=r"is (running|pending)"):
        service.resume(handle)
    assert service.failures(handle).rows_failed == 0  # while it runs
    bench.server.answers_at_most = None
    assert service.cancel(handle).status is JobStatus.CANCELLED
    bench.server.behave = lambda _prompt, _nth: answer()
    assert service.wait(service.resume(handle)).status is JobStatus.SUCCEEDED
    assert set(bench.server.asked.values()) == {1}
    assert [row["answer"] for row in bench.output()] == [f"P{number}" for number in range(300)]


def test_what_cannot_be_resumed_says_why(service: JobService, bench: Any) -> None:
    bench.write(3)
    handle = service.submit(bench.request(checkpointing=False))
    service.wait(handle)
    with pytest.raises(StateError, match="kept no checkpoint"):
        service.retry_failed(handle)
    with pytest.raises(JobError, match="no checkpoint at"):
        service.failures(handle)
    (Path(handle.job_dir) / "job.json").unlink()
    with pytest.raises(StateError, match="is not readable"):
        service.resume(handle)
