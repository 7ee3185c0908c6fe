"""A preview: the first rows are asked, shown and kept; the job asks the others."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm.errors import ConfigError, OutputExists, PlatformUnavailable
from domyn_swarm.model import JobStatus
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest

FIRST = Counter({f"p{number}": 1 for number in range(10)})
ALL = Counter({f"p{number}": 1 for number in range(25)})


def asked(service: JobService, request: JobRequest, **more: Any) -> Any:
    """A preview whose run has nothing to say."""
    heard: list[str] = []
    found = service.preview(request, heard.append, **more)
    assert heard == []
    return found


def test_what_a_preview_asked_is_not_asked_by_the_job(service: JobService, bench: Any) -> None:
    bench.write(25)
    found = asked(service, bench.request(id_column="n"))
    assert bench.server.asked == FIRST
    assert service.list() == []
    assert not Path(found.output).exists()
    assert [one.answer for one in found.rows] == [{"answer": f"P{at}"} for at in range(10)]
    assert found.rows[3].input == {"n": 3, "prompt": "p3"}
    assert (found.rows_total, found.rows_settled, found.rows_asked) == (25, 10, 10)
    assert (found.estimate.rows, found.estimate.prompt_tokens) == (15, 30)
    assert found.estimate.duration_s > 0

    again = asked(service, bench.request(id_column="n"), rows=3)
    assert (again.rows_asked, len(again.rows), again.estimate.duration_s) == (0, 3, None)
    assert service.wait(service.submit(bench.request(id_column="n"))).rows_resumed == 10
    assert bench.server.asked == ALL
    assert [row["answer"] for row in bench.output()] == [f"P{at}" for at in range(25)]


def test_rows_that_fail_in_a_preview_are_asked_again_by_whatever_follows(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(12)
    bench.server.behave = lambda prompt, nth: answer(
        status=400 if prompt == "p3" and nth < 3 else 200
    )
    for _ in range(2):
        found = asked(service, bench.request(max_failures="0"))
        assert found.rows[3].error.status == 400
        assert (found.rows_settled, found.estimate.rows) == (9, 3)
    assert service.wait(service.submit(bench.request())).status is JobStatus.SUCCEEDED
    assert bench.server.asked == Counter({f"p{at}": 1 for at in range(12)}) + Counter({"p3": 2})


def test_a_preview_that_asks_all_anew_has_begun_with_that(service: JobService, bench: Any) -> None:
    bench.write(12)
    service.wait(service.submit(bench.request()))
    bench.server.asked.clear()
    anew = bench.request(resume=False)
    found = asked(service, anew, rows=5)
    assert (found.rows_asked, found.rows_settled, found.estimate.rows) == (5, 5, 7)
    service.wait(service.submit(anew.model_copy(update={"resume": True})))
    assert bench.server.asked == Counter({f"p{at}": 1 for at in range(12)})


def test_an_output_of_another_job_is_refused_before_a_preview_asks(
    service: JobService, bench: Any
) -> None:
    bench.write(3)
    service.wait(service.submit(bench.request()))
    bench.server.asked.clear()
    with pytest.raises(OutputExists, match="temperature"):
        asked(service, bench.request(job_kwargs={"temperature": 0}))
    with pytest.raises(ConfigError, match="keeps the answers"):
        asked(service, bench.request(checkpointing=False))
    assert not bench.server.asked
    assert asked(service, bench.request(limit=2)).rows_total == 2
    assert asked(service, bench.request(limit=0)).rows == ()


def test_nobody_is_waited_for(service: JobService, bench: Any) -> None:
    bench.write(3)
    bench.server.stop()
    with pytest.raises(PlatformUnavailable, match="Nothing serves at the endpoint"):
        asked(service, bench.request())


def test_an_interrupted_preview_keeps_what_was_answered(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(10)

    def behave(prompt: str, _nth: int) -> Any:
        if prompt == "p4":
            os.kill(os.getpid(), signal.SIGINT)
        return answer()

    bench.server.behave = behave
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # others' jobs leave theirs
    try:
        with pytest.raises(KeyboardInterrupt):
            asked(service, bench.request(max_concurrency=1))
    finally:
        signal.signal(signal.SIGINT, before)
    first = bench.server.asked.total()
    assert 5 <= first < 10
    bench.server.behave = lambda _prompt, _nth: answer()
    assert asked(service, bench.request()).rows_asked == 10 - first
    assert max(bench.server.asked.values()) == 1


def test_a_preview_hides_the_key_in_what_it_shows(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(1)
    said = {"error": {"message": f"not with {bench.server.key}"}}
    bench.server.behave = lambda _prompt, _nth: answer(status=400, body=said)
    found = asked(service, bench.request())
    assert "***" in found.rows[0].error.message
    assert bench.server.key not in json.dumps(found.model_dump(mode="json"))
