"""A dry run: everything is checked, one row is asked, nothing is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm.errors import ConfigError, InvalidInput, PlatformUnavailable
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from patience import limit_s


def tree(folder: Path) -> set[Path]:
    """Everything in a folder but what SQLite keeps beside its database while it is open."""
    return {path for path in folder.rglob("*") if path.suffix not in (".db-wal", ".db-shm")}


def test_one_row_is_asked_shown_and_counted_up_and_nothing_is_left(
    service: JobService, bench: Any
) -> None:
    prompts = ["a" * 10, *["b" * 30] * 3]
    pq.write_table(pa.table({"prompt": prompts}), bench.folder / "in.parquet")
    before = tree(bench.folder)
    secret = {"system": "s" * 600, "user": "the-key", "max_tokens": 5}
    secret["extra_body"] = {"api_key": "hidden"}
    found = service.dry_run(bench.request(job_kwargs=secret))

    assert tree(bench.folder) == before
    assert service.list() == []
    assert sum(bench.server.asked.values()) == 1
    [sent] = found.requests
    assert sent.path == "/v1/chat/completions"
    assert sent.body["model"] == "m"
    assert sent.body["max_tokens"] == 5
    assert sent.body["api_key"] == "***"
    assert sent.body["user"] == "***"
    assert sent.body["messages"][0]["content"] == "s" * 500 + "… (100 characters more)"
    assert sent.body["messages"][1]["content"] == prompts[0]
    assert bench.server.bodies[0]["api_key"] == "hidden"  # what is sent is not what is shown
    assert found.answer == {"answer": "A" * 10}
    assert (found.prompt_tokens, found.completion_tokens) == (10, 10)
    assert (found.rows_total, found.rows_settled, found.error) == (4, 0, None)
    assert found.estimate is not None
    assert found.estimate.requests == 4
    assert found.estimate.completion_tokens == 40
    assert found.estimate.inputs_compared == 4
    assert 40 < (found.estimate.prompt_tokens or 0) < 45  # most of the request is the same for all


def test_prompts_of_other_lengths_change_the_estimate(service: JobService, bench: Any) -> None:
    prompts = ["a" * 1000, *["b" * 3000] * 99]
    pq.write_table(pa.table({"prompt": prompts}), bench.folder / "in.parquet")
    found = service.dry_run(bench.request(limit=50))
    assert found.rows_total == 50
    assert found.estimate is not None
    assert found.estimate.inputs_compared == 50
    assert found.estimate.prompt_tokens == pytest.approx(1000 + 49 * 3000, rel=0.02)


def test_settled_rows_are_no_part_of_the_estimate(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(10)
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p3" else 200)
    service.wait(service.submit(bench.request(limit=6)))
    bench.server.asked.clear()
    before = tree(bench.folder)
    found = service.dry_run(bench.request())
    assert tree(bench.folder) == before
    assert bench.server.asked == {"p0": 1}
    assert (found.rows_total, found.rows_settled) == (10, 6)
    assert found.estimate is not None
    assert found.estimate.requests == 4
    again = service.dry_run(bench.request(resume=False))
    assert again.rows_settled == 0
    service.wait(service.submit(bench.request()))
    over = service.dry_run(bench.request())
    assert (over.rows_settled, over.estimate) == (10, None)


@pytest.mark.parametrize("status", [400, 429, 500])
def test_a_row_that_fails_is_asked_once_and_says_why(
    service: JobService, bench: Any, answer: Any, status: int
) -> None:
    bench.write(3)
    bench.server.behave = lambda _prompt, _nth: answer(status=status)
    found = service.dry_run(bench.request(retries=5))
    assert bench.server.asked == {"p0": 1}
    assert found.error is not None
    assert found.error.status == status
    assert found.error.message == f"HTTP {status}: status {status} for p0"
    assert (found.answer, found.estimate) == (None, None)
    assert len(found.requests) == 1


def test_a_reply_that_takes_too_long_is_the_rows_error(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(3)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=limit_s())
    found = service.dry_run(bench.request(timeout_s=0.2))
    assert found.error is not None
    assert found.error.type == "RequestTimeout"
    assert bench.server.asked == {"p0": 1}


@pytest.mark.parametrize("listens", [True, False])
def test_an_endpoint_without_anybody_behind_it_is_one_error(
    service: JobService, bench: Any, answer: Any, listens: bool
) -> None:
    bench.write(3)
    before = tree(bench.folder)
    bench.server.serving = False
    bench.server.behave = lambda _prompt, _nth: answer(status=503)
    if not listens:
        bench.server.stop()
    with pytest.raises(PlatformUnavailable, match="Nothing serves at the endpoint http"):
        service.dry_run(bench.request())
    assert tree(bench.folder) == before
    assert sum(bench.server.asked.values()) == listens


def test_without_rows_nothing_is_sent(service: JobService, bench: Any) -> None:
    bench.write(3)
    found = service.dry_run(bench.request(limit=0))
    assert (found.rows_total, found.requests, found.latency_s) == (0, (), None)
    assert (found.answer, found.error, found.estimate) == (None, None, None)
    assert not bench.server.asked


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"input_columns": ("promt",)}, InvalidInput),
        ({"output": "out.xyz"}, InvalidInput),
        ({"id_column": "none"}, InvalidInput),
        ({"max_failures": "many"}, ConfigError),
        ({"job": "domyn_swarm.jobs:NoJob"}, ConfigError),
        ({"resources": JobResources(cpus=3)}, ConfigError),
        ({"down_after": True}, ConfigError),
    ],
)
@pytest.mark.parametrize("operation", ["dry_run", "submit"])
def test_what_is_refused_is_refused_before_anything_is_asked_or_written(
    service: JobService, bench: Any, operation: str, changes: dict[str, Any], error: type[Exception]
) -> None:
    bench.write(3)
    before = tree(bench.folder)
    with pytest.raises(error):
        getattr(service, operation)(bench.request().model_copy(update=changes))
    assert tree(bench.folder) == before
    assert not bench.server.asked


def test_every_request_of_a_row_is_shown_as_it_was_sent(service: JobService, bench: Any) -> None:
    turns = [[{"role": "user", "content": "first"}, {"role": "user", "content": "second"}]]
    pq.write_table(pa.table({"prompt": turns}), bench.folder / "in.parquet")
    job = "domyn_swarm.jobs:MultiTurnChatCompletionJob"
    found = service.dry_run(bench.request(job=job, output_columns=()))
    assert found.error is None, found.error
    assert [len(one.body["messages"]) for one in found.requests] == [1, 3]
    assert found.estimate is not None
    assert found.estimate.requests == 2
