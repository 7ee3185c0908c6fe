"""Checkpoints in a home: what is told of them, and what may be removed."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from command_line import PROGRAM, CommandLine, rows_done, worker_of
from domyn_swarm.errors import StateError
from domyn_swarm.model import JobStatus
from domyn_swarm.paths import checkpoints_dir
from domyn_swarm.services.checkpoints import (
    CheckpointQuery,
    list_checkpoints,
    remove_checkpoints,
)
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobChanges
from patience import limit_s, until
from schemas import fits


@pytest.fixture
def cli(swarm_home: Path) -> CommandLine:
    return CommandLine(swarm_home)


def test_they_are_told_of_and_removed_by_identity_job_or_age(
    service: JobService, bench: Any, answer: Any, cli: CommandLine
) -> None:
    bench.write(30)
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p7" else 200)
    first = service.submit(bench.request(name="first"))
    assert service.wait(first).status is JobStatus.PARTIAL
    other = {"output": str(bench.folder / "other.parquet"), "checkpoint_tag": "other", "limit": 5}
    second = service.submit(bench.request(name="second", external_id=None, **other))
    service.wait(second)
    again = service.retry_failed(first)
    service.wait(again)

    listed = cli.json("checkpoints", "list")
    assert listed["schema_version"] == 1
    assert listed["root"] == str(checkpoints_dir())
    assert listed["bytes"] == sum(one["bytes"] for one in listed["checkpoints"]) > 0
    by_name = {one["jobs"][0]["job_name"]: one for one in listed["checkpoints"]}
    [job] = by_name["first"]["jobs"]
    assert job["job_ids"] == [first.job_id, again.job_id]
    assert (by_name["first"]["rows_done"], by_name["first"]["rows_failed"]) == (30, 1)
    assert (by_name["second"]["rows_done"], by_name["second"]["tag"]) == (5, "other")
    assert job["input"] == str(bench.folder / "in.parquet")
    assert job["output"] == str(bench.folder / "out.parquet")
    assert {one["jobs"][0]["lease"] for one in listed["checkpoints"]} == {"free"}
    one, two = (by_name[name]["identity"] for name in ("first", "second"))
    for ref in (one, one[:8], first.job_id, again.job_id, "mine"):
        found = list_checkpoints(CheckpointQuery(refs=(ref,))).checkpoints
        assert [each.identity for each in found] == [one], ref
    table = cli.ok("checkpoints", "list")
    assert one in table
    assert "30, 1 failed" in table

    month = time.time() - 40 * 86400
    for path in (checkpoints_dir() / two, *(checkpoints_dir() / two).rglob("*")):
        os.utime(path, (month, month))
    assert list_checkpoints(CheckpointQuery(refs=(one,), older_than_days=30)).checkpoints == ()
    removed = cli.json("checkpoints", "rm", "--older-than", 30, "-y")
    fits(removed, "checkpoints rm")
    assert [each["identity"] for each in removed["checkpoints"]] == [two]
    assert removed["bytes_freed"] == by_name["second"]["bytes"]
    assert [path.name for path in checkpoints_dir().iterdir()] == [one]

    assert cli.ok("checkpoints", "rm", "mine", "-y") == f"{one} removed\n"
    assert list(checkpoints_dir().iterdir()) == []
    bench.server.asked.clear()
    service.wait(service.submit(bench.request()))
    assert sum(bench.server.asked.values()) == 30


def _listed(cli: CommandLine, job_id: str) -> list[dict[str, Any]]:
    checkpoints: list[dict[str, Any]] = cli.json("checkpoints", "list")["checkpoints"]
    jobs = [job for one in checkpoints for job in one["jobs"]]
    return [job for job in jobs if job_id in job["job_ids"]]


def test_failed_rows_are_those_that_the_job_counts(
    service: JobService, bench: Any, answer: Any, cli: CommandLine
) -> None:
    def counted(handle: Any) -> tuple[int, int]:
        seen = service.wait(handle)
        [listed] = _listed(cli, handle.job_id)
        assert (listed["rows_done"], listed["rows_failed"]) == (seen.rows_done, seen.rows_failed)
        return seen.rows_done, seen.rows_failed

    bench.write(6)
    cut = {"message": {"content": "half"}, "finish_reason": "length"}
    replies = {
        "p1": answer(body={"choices": [cut]}),
        "p2": answer(text=""),
        "p3": answer(status=400),
    }
    bench.server.behave = lambda prompt, _nth: replies.get(prompt, answer())
    assert counted(service.submit(bench.request())) == (6, 2)
    any_counts = JobChanges(accept="any")
    assert counted(service.resume("mine", changes=any_counts)) == (6, 1)
    assert counted(service.resume("mine", changes=JobChanges(accept="complete"))) == (6, 3)

    replies |= {"p4": answer(status=400), "p3": answer()}
    assert counted(service.submit(bench.request(external_id="anew", resume=False))) == (6, 2)


def test_one_that_is_held_stays_and_the_job_ends_well(
    service: JobService, bench: Any, cli: CommandLine
) -> None:
    bench.write(200)
    bench.server.answers_at_most = 10
    handle = service.submit(bench.request(max_concurrency=4))
    until(lambda: bench.server.answered.total() == 10)
    (held,) = until(lambda: _listed(cli, handle.job_id))  # a run notes its job after a moment
    assert held["lease"] == "held"
    assert held["holder"].startswith("process ")
    refused = cli("checkpoints", "rm", handle.job_id, "-y", "--json")
    assert refused.returncode == 3
    (kept,) = json.loads(refused.stdout)["checkpoints"]
    assert not kept["removed"]
    assert "is being run by process" in refused.stderr
    assert f"The job {handle.job_id} (mine) is sending these rows now" in refused.stderr
    bench.server.answers_at_most = None
    assert service.wait(handle).status is JobStatus.SUCCEEDED
    assert set(bench.server.asked.values()) == {1}


def test_that_of_a_killed_job_is_free_and_what_a_killed_removal_left_goes_too(
    service: JobService, bench: Any, cli: CommandLine
) -> None:
    bench.write(200)
    bench.server.answers_at_most = 40
    handle = service.submit(bench.request(max_concurrency=4))
    until(lambda: rows_done({"job_dir": handle.job_dir}) > 10)
    worker_of({"job_dir": handle.job_dir}).kill()
    assert service.wait(handle).status is JobStatus.FAILED
    (left,) = cli.json("checkpoints", "list")["checkpoints"]
    assert left["jobs"][0]["lease"] == "free"
    assert 0 < left["rows_done"] < 200
    leftover = checkpoints_dir() / f".removed-{'0' * 24}-aa"
    leftover.mkdir()
    (leftover / "x").write_text("")
    cli.ok("checkpoints", "rm", left["identity"][:6], "-y")
    assert list(checkpoints_dir().iterdir()) == []


def test_a_holder_on_another_machine_is_watched_before_anything_goes(tmp_path: Path) -> None:
    folder = tmp_path / ("ab" * 12) / ("cd" * 8)
    folder.mkdir(parents=True)
    ended = threading.Event()

    def beat() -> None:
        counter = 0
        while not ended.wait(0.2):
            counter += 1
            document = {"host": "elsewhere", "pid": 1, "started_at": 0.0, "released": False}
            new = folder / "new"
            new.write_text(json.dumps({**document, "counter": counter}))
            new.rename(folder / "lease-000001.json")

    holder = threading.Thread(target=beat)
    holder.start()
    try:
        until((folder / "lease-000001.json").exists)
        listed = list_checkpoints(CheckpointQuery(root=tmp_path))
        (found,) = listed.checkpoints
        (job,) = found.jobs
        assert (job.lease, job.holder) == ("claimed", "process 1 on elsewhere")
        assert (found.job, found.rows_done) == (None, 0)
        (kept,) = remove_checkpoints(listed).checkpoints
        assert not kept.removed
        assert "elsewhere" in str(kept.error)
    finally:
        ended.set()
        holder.join()
    assert folder.is_dir()


def test_a_job_takes_away_what_it_was_answered_itself(
    service: JobService, bench: Any, cli: CommandLine
) -> None:
    handles = {}
    prompt = {"job": "domyn_swarm.jobs:TemplateJob", "job_kwargs": {"prompt": "{{ prompt }}"}}
    for name, rows, start in (("a", 20, 0), ("b", 20, 10), ("c", 5, 15)):
        source = bench.write(rows, f"{name}.parquet", start)
        names = {"external_id": name, "id_column": "n", "output": str(bench.folder / f"{name}.csv")}
        changes = {**prompt, **names, "input": str(source), "input_columns": ()}
        handles[name] = service.submit(bench.request(**changes))
        assert service.wait(handles[name]).status is JobStatus.SUCCEEDED
    assert bench.server.asked.total() == 30
    (listed,) = cli.json("checkpoints", "list")["checkpoints"]
    assert listed["prompt"] == "{{ prompt }}"
    assert listed["rows_done"] == 30
    by_name = {job["external_id"]: job["rows_done"] for job in listed["jobs"]}
    assert by_name == {"a": 20, "b": 10, "c": 0}
    files = [path for path in checkpoints_dir().rglob("*") if path.is_file()]
    assert listed["bytes"] == sum(path.stat().st_size for path in files)
    table = cli.ok("checkpoints", "list")
    assert "{{ prompt }}" in table
    for name in "abc":
        assert f" {name}.parquet" in table

    removed = cli("checkpoints", "rm", "a", "-y")
    assert removed.returncode == 0
    assert f"{handles['a'].job_id} (a) over" in removed.stderr
    assert f"{handles['b'].job_id} (b) over" in removed.stderr
    assert "uses 10 rows of these" in removed.stderr
    assert "uses 5 rows of these" in removed.stderr
    (left,) = cli.json("checkpoints", "list")["checkpoints"]
    assert {job["external_id"] for job in left["jobs"]} == {"b", "c"}
    bench.server.asked.clear()
    again = service.wait(service.resume(handles["b"]))
    assert again.status is JobStatus.SUCCEEDED
    assert (again.rows_done, again.rows_resumed) == (20, 10)
    assert set(bench.server.asked) == {f"p{number}" for number in range(10, 20)}
    cli.ok("checkpoints", "rm", left["identity"][:8], "-y")
    assert list(checkpoints_dir().iterdir()) == []


def test_what_means_none_or_several_removes_none(tmp_path: Path, cli: CommandLine) -> None:
    for name in ("abcd" + "0" * 20, "abcd" + "1" * 20):
        (tmp_path / name).mkdir()
    (tmp_path / "key-notes").mkdir()
    folder = ("--checkpoint-dir", tmp_path)
    assert len(cli.json("checkpoints", "list", *folder)["checkpoints"]) == 2
    for ref, said in (
        ("abcd", "matches 2"),
        ("abc", "no checkpoint"),
        ("key-notes", "no checkpoint"),
    ):
        done = cli("checkpoints", "rm", ref, "-y", *folder)
        assert done.returncode == 3
        assert said in done.stderr
    for words in (["abcd0"], ["--older-than", "1"]):
        done = cli("checkpoints", "rm", *words, *folder)
        assert done.returncode == 2
        assert "-y is required" in done.stderr
    assert cli("checkpoints", "rm", "-y", *folder).returncode == 2
    assert len(list(tmp_path.glob("abcd*"))) == 2
    with pytest.raises(StateError):
        list_checkpoints(CheckpointQuery(root=tmp_path / "nowhere", refs=("abcd",)))
    assert cli.json("checkpoints", "list")["checkpoints"] == []
    assert not cli.home.exists()


@pytest.mark.parametrize(("said", "code", "left"), [("n", 1, 1), ("y", 0, 0)])
def test_a_person_is_asked(
    tmp_path: Path, cli: CommandLine, said: str, code: int, left: int
) -> None:
    (tmp_path / ("ab" * 12)).mkdir()
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        [PROGRAM, "checkpoints", "rm", "abab", "--checkpoint-dir", str(tmp_path)],
        stdin=secondary,
        stdout=subprocess.DEVNULL,
        stderr=secondary,
        env=cli.environment,
    ) as asked:
        os.close(secondary)
        os.write(primary, f"{said}\n".encode())
        assert asked.wait(limit_s()) == code
    os.close(primary)
    assert len(list(tmp_path.glob("ab*"))) == left
