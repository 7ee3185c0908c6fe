"""Jobs after the first try: failures, asking them again, going on elsewhere."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from command_line import CommandLine
from domyn_swarm.errors import (
    CheckpointBusy,
    InvalidInput,
    JobError,
    NothingToRetry,
    OutputExists,
    StateError,
)
from domyn_swarm.jobs.worker_spec import new_job_id
from domyn_swarm.model import JobHandle, JobStatus, ReplyVerdict, SwarmPhase, utc_now
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobChanges
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from domyn_swarm.swarm.survey import jobs_of
from patience import limit_s, scaled, until


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


def test_rows_without_a_complete_answer_are_counted_and_asked_again_by_class(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(6)
    cut = {"message": {"content": "half"}, "finish_reason": "length"}
    replies = {"p1": answer(body={"choices": [cut]}), "p2": answer(text="")}
    bench.server.behave = lambda prompt, _nth: replies.get(prompt, answer())
    service.submit(bench.request())
    told = service.wait("mine")
    assert (told.status, told.rows_failed) == (JobStatus.PARTIAL, 1)
    assert told.verdicts == {"complete": 4, "cut": 1, "empty": 1}
    assert told.remarks == (
        "1 answer was cut by the server's own token limit: the job gives no max_tokens.",
    )
    failures = service.failures("mine")
    assert failures.rows_failed == 1
    assert [(one.verdict, one.kept, one.rows, one.example_row) for one in failures.groups] == [
        ("empty", False, 1, 2),
        ("cut", True, 1, 1),
    ]
    page = service.report("mine").path.read_text(encoding="utf-8")
    assert "4 complete" in page
    assert "1 cut" in page
    assert "the job gives no max_tokens" in page

    bench.server.asked.clear()
    bench.server.behave = lambda _prompt, _nth: answer()
    changes = JobChanges(retry_classes=(ReplyVerdict.CUT,), override={"max_tokens": 400})
    again = service.wait(service.retry_failed("mine", changes=changes))
    assert bench.server.asked == {"p1": 1}
    assert again.verdicts == {"complete": 5, "empty": 1}
    assert again.remarks == ()
    assert bench.output()[1]["answer"] == "P1"


def test_a_job_in_a_file_and_paths_of_the_users_home(
    service: JobService, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `--input=~/in.parquet` has it: no shell has seen the `~`."""
    bench.write(2)
    jobs = bench.folder / "jobs"
    jobs.mkdir()
    source = "from domyn_swarm import job\n\n@job\nasync def loud(item):\n    return item.upper()\n"
    (jobs / "own_jobs.py").write_text(source)
    monkeypatch.setenv("HOME", str(bench.folder))
    monkeypatch.chdir(jobs.parent)
    paths = {"input": "~/in.parquet", "output": "~/out.parquet", "checkpoint_dir": "~/kept"}
    service.submit(bench.request(job="jobs/own_jobs.py:loud", **paths))
    assert service.wait("mine").status is JobStatus.SUCCEEDED
    assert [row["answer"] for row in bench.output()] == ["P0", "P1"]
    assert (bench.folder / "kept").is_dir()


def test_where_there_is_nothing_to_retry_nothing_is_started(
    service: JobService, bench: Any
) -> None:
    bench.write(4)
    service.submit(bench.request())
    assert service.wait("mine").status is JobStatus.SUCCEEDED
    with pytest.raises(NothingToRetry, match="no row of ChatCompletionJob has failed") as told:
        service.retry_failed("mine")
    assert "--class" in told.value.hint
    changes = JobChanges(retry_classes=(ReplyVerdict.CUT, ReplyVerdict.EMPTY))
    with pytest.raises(NothingToRetry, match="is cut or empty"):
        service.retry_failed("mine", changes=changes)
    assert len(service.list()) == 1
    assert bench.server.asked.total() == 4


def test_rows_of_a_run_that_stopped_are_asked_with_other_parameters(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(5)
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p3" else 200)
    service.submit(bench.request(max_failures="0", max_concurrency=1))
    assert service.wait("mine").status is JobStatus.FAILED
    bench.server.behave = lambda _prompt, _nth: answer()
    changes = JobChanges(override={"max_tokens": 9})
    before = service.status("mine").parameters
    handle = service.retry_failed("mine", changes=changes)
    again = service.wait(handle)
    shown = service.status(handle)
    assert (shown.parameters, shown.retry_parameters) == (before, {"max_tokens": 9})
    assert bench.server.asked == {"p0": 1, "p1": 1, "p2": 1, "p3": 2}
    assert again.status is JobStatus.FAILED
    assert "1 of 5 rows have never been sent" in str(again.message)
    assert service.wait(service.resume("mine")).status is JobStatus.SUCCEEDED
    assert bench.server.asked == {"p0": 1, "p1": 1, "p2": 1, "p3": 2, "p4": 1}


def test_a_retry_of_a_cancelled_job_asks_what_failed_and_no_others(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(300)
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p3" else 200)
    bench.server.answers_at_most = 20
    handle = service.submit(bench.request(max_concurrency=8))
    until(lambda: bench.server.answered.total() == 20)
    service.cancel(handle)
    bench.server.answers_at_most = None
    bench.server.behave = lambda _prompt, _nth: answer()
    bench.server.asked.clear()
    again = service.retry_failed(handle)
    ended = service.wait(again)
    assert bench.server.asked == {"p3": 1}
    assert ended.status is JobStatus.FAILED
    assert f"job resume {again.job_id}" in str(ended.message)
    jobs = len(service.list())
    with pytest.raises(NothingToRetry, match="has failed"):
        service.retry_failed(again)
    assert len(service.list()) == jobs
    assert service.wait(service.resume(again)).status is JobStatus.SUCCEEDED
    assert bench.output()[3]["answer"] == "P3"


def test_rows_that_another_job_asks_now_are_refused_before_anything_is_recorded(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(30)
    other = str(bench.write(30, "other.parquet", start=100))
    bench.server.answers_at_most = 5
    handle = service.submit(bench.request(max_concurrency=4))
    until(lambda: bench.server.answered.total() == 5)
    with pytest.raises(CheckpointBusy) as busy:
        service.submit(bench.request(external_id="second"))
    assert f"The job {handle.job_id} (mine) is sending these rows now" in busy.value.message
    assert f"job cancel {handle.job_id}" in busy.value.hint
    assert len(service.list()) == 1
    with pytest.raises(OutputExists, match=f"{handle.job_id} is going to write"):
        service.submit(bench.request(external_id="second", input=other))
    assert len(service.list()) == 1
    beside = {"external_id": "beside", "input": other, "output": str(bench.folder / "o.parquet")}
    bench.server.answers_at_most = None
    assert service.wait(service.submit(bench.request(**beside))).status is JobStatus.SUCCEEDED
    assert service.wait(handle).status is JobStatus.SUCCEEDED


def test_of_two_that_ask_the_same_rows_at_once_one_is_refused_as_it_is_recorded(
    service: JobService, bench: Any, swarm_home: Path
) -> None:
    bench.write(30)
    bench.server.answers_at_most = 5
    asked = bench.request()
    words = ["job", "submit", "--endpoint", asked.endpoint, "--model", "m", "--detach"]
    words += ["--input", asked.input, "--input-column", "prompt", "--output-column", "answer"]
    both = [
        CommandLine(swarm_home).start(*words, "--output", bench.folder / f"{name}.parquet")
        for name in ("one", "two")
    ]
    said = [(*one.communicate(timeout=limit_s()), one.returncode) for one in both]
    [handle] = [JobHandle.model_validate_json(out) for out, _, code in said if code == 0]
    [refused] = [err for out, err, code in said if code != 0 and out == ""]
    assert f"The job {handle.job_id} sends the same rows, or will, for" in refused
    assert f"job wait {handle.job_id}" in refused
    assert [one.job_id for one in service.list()] == [handle.job_id]
    bench.server.answers_at_most = None
    assert service.wait(handle).status is JobStatus.SUCCEEDED
    again = service.submit(bench.request(output=str(bench.folder / "again.parquet")))
    assert service.wait(again).status is JobStatus.SUCCEEDED
    assert set(bench.server.asked.values()) == {1}


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
    cancelled = service.cancel(handle)
    assert cancelled.status is JobStatus.CANCELLED
    assert str(cancelled.message).startswith("it was told to stop")
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
    with pytest.raises(StateError, match="Cannot read the specification"):
        service.resume(handle)


def test_a_job_whose_record_of_its_end_cannot_be_read_is_not_judged_until_it_can(
    service: JobService, bench: Any
) -> None:
    bench.write(3)
    handle = service.submit(bench.request())
    record = Path(handle.exit_path)
    until(record.exists)
    written = record.rename(record.with_name("aside"))
    record.mkdir()  # it is there, and cannot be read
    for seen in (service.status(handle), *service.list(), *service.list(refresh=False)):
        assert not seen.status.final
    record.rmdir()
    written.rename(record)
    assert service.status(handle).status is JobStatus.SUCCEEDED


def test_the_newest_jobs_are_listed_first_and_the_others_counted(
    service: JobService, bench: Any, swarm_home: Path
) -> None:
    bench.write(1)
    for number in range(3):
        service.submit(bench.request(external_id=f"e{number}"))
        service.wait(f"e{number}")
    assert [one.external_id for one in service.list(newest=2)] == ["e2", "e1"]
    cli = CommandLine(swarm_home)
    found = cli.json("job", "list", "-n", "1")
    assert [one["external_id"] for one in found["jobs"]] == ["e2"]
    assert found["left_out"] == 2
    assert cli.json("job", "list", "-n", "0")["left_out"] == 0
    assert len(cli.json("job", "list")["jobs"]) == 3
    done = cli("job", "list", "-n", "2")
    assert "jobs before these: 1; -n 0" in done.stderr


def test_jobs_of_the_live_swarm_come_first_and_of_an_earlier_one_of_its_name_last(
    swarm_home: Path,
) -> None:
    store, now = SwarmStore.open(), utc_now()
    swarm = SwarmRecord(
        name="demo",
        tag="demo.x",
        backend="local",
        phase=SwarmPhase.READY,
        swarm_dir=str(swarm_home / "swarms" / "demo"),
        plan_json="{}",
        created_at=now - timedelta(hours=3),
        updated_at=now,
    )
    store.create_swarm(swarm)
    for hours, name, status in (
        (5, "demo", JobStatus.SUCCEEDED),
        (4, "demo", JobStatus.RUNNING),
        (2, "demo", JobStatus.SUCCEEDED),
        (1, None, JobStatus.SUCCEEDED),
    ):
        store.create_job(
            JobRecord(
                job_id=f"{hours}h",
                name="n",
                swarm=name,
                platform="local",
                status=status,
                job_dir=str(swarm_home / "jobs" / f"{hours}h"),
                input="i",
                output="o",
                submitted_at=now - timedelta(hours=hours),
            )
        )
    mine = jobs_of(swarm, store.jobs("demo"))
    assert [job.job_id for job in mine] == ["4h", "2h"]  # one of before that goes on is its own
    service = JobService(store)
    listed = service.current_first(service.list(refresh=False))
    assert [job.job_id for job in listed] == ["2h", "5h", "4h", "1h"]


def test_ids_of_jobs_sort_by_time_where_clocks_are_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead
    time.tzset()
    try:
        began = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
        assert began <= new_job_id()[: len(began)] <= f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_errors_of_a_run_that_gave_up_are_shown_and_a_resume_asks_their_rows(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(40)
    bench.server.behave = lambda _prompt, _nth: answer(status=401)
    service.submit(bench.request(max_concurrency=1))
    told = service.wait("mine")
    assert (told.status, told.rows_failed) == (JobStatus.FAILED, 5)
    exported = bench.folder / "failed.parquet"
    failures = service.failures("mine", export=exported)
    assert [(one.rows, one.status) for one in failures.groups] == [(5, 401)]
    assert (failures.rows_failed, failures.rows_failed_unsettled) == (5, 5)
    assert failures.rows_unsettled == 40
    assert len(pq.read_table(exported)) == 5

    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p9" else 200)
    assert service.wait(service.resume("mine")).status is JobStatus.PARTIAL
    failures = service.failures("mine")
    assert [(one.rows, one.status) for one in failures.groups] == [(1, 400)]
    assert (failures.rows_failed_unsettled, failures.rows_unsettled) == (0, 0)


def test_of_jobs_that_are_submitted_for_one_output_at_once_one_is_taken(
    service: JobService, bench: Any, swarm_home: Path
) -> None:
    cli = CommandLine(swarm_home)
    bench.server.answers_at_most = 0
    link = bench.folder / "link"
    link.symlink_to(bench.folder)
    outputs = [
        bench.folder / "out.parquet",
        link / "out.parquet",
        bench.folder / "x/../out.parquet",
    ]
    submitted = []
    for number, output in enumerate(outputs):
        rows = bench.write(3, f"{number}.parquet", start=10 * number)
        where = ("--endpoint", bench.server.url, "--model", "m", "--input-column", "prompt", "-d")
        submitted.append(cli.start("job", "submit", *where, "--input", rows, "--output", output))
    ended = [(one.communicate(timeout=limit_s()), one.returncode) for one in submitted]
    assert sorted(code for _, code in ended) == [0, 2, 2], ended
    [job] = service.list()
    for (_, said), code in ended:
        assert code == 0 or f"The job {job.job_id} is going to write" in said
    assert [path.name for path in (swarm_home / "jobs").iterdir()] == [job.job_id]
    bench.server.answers_at_most = None
    assert service.wait(job.job_id).status is JobStatus.SUCCEEDED


def test_a_job_whose_output_another_one_replaced_goes_on_when_that_is_meant(
    service: JobService, bench: Any, answer: Any
) -> None:
    bench.write(3)
    other = str(bench.write(2, "other.parquet", start=50))
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p1" else 200)
    service.wait(service.submit(bench.request()))
    with pytest.raises(OutputExists, match="the answers to another input"):
        service.submit(bench.request(input=other, external_id="other"))
    hotter = {"job_kwargs": {"temperature": 0.5}, "external_id": "other"}
    with pytest.raises(OutputExists, match=r"What differs: temperature: not set → 0\.5\.") as what:
        service.submit(bench.request(**hotter))
    assert what.value.exit_code == 2
    assert len(service.list()) == 1
    handle = service.submit(bench.request(input=other, external_id="other", overwrite=True))
    assert service.wait(handle).status is JobStatus.SUCCEEDED

    bench.server.behave = lambda _prompt, _nth: answer()
    with pytest.raises(NothingToRetry):  # comes first: there would be no output
        service.retry_failed("mine", changes=JobChanges(retry_classes=(ReplyVerdict.CUT,)))
    with pytest.raises(OutputExists) as refused:
        service.retry_failed("mine")
    assert "--overwrite" in refused.value.hint
    again = service.wait(service.retry_failed("mine", changes=JobChanges(overwrite=True)))
    assert again.status is JobStatus.SUCCEEDED
    assert [row["answer"] for row in bench.output()] == ["P0", "P1", "P2"]


def test_a_checkpoint_that_cannot_be_written_is_refused_before_anything_is_recorded(
    service: JobService, bench: Any
) -> None:
    bench.write(3)
    taken = bench.folder / "taken"
    taken.write_text("a file")
    for where in (taken, taken / "inside", Path("/proc/nowhere")):
        with pytest.raises(InvalidInput, match="cannot be written") as refused:
            service.submit(bench.request(checkpoint_dir=where))
        assert "--checkpoint-dir" in refused.value.hint
    assert service.list() == []
    service.wait(service.submit(bench.request()))
    with pytest.raises(JobError, match="Cannot write"):
        service.show_results("mine", export=taken / "x.csv")
