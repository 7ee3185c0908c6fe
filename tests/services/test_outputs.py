"""Outputs through the services, the facade and the installed command."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import CommandLine
from domyn_swarm.errors import JobError, JobNotFound
from domyn_swarm.model import JobStatus
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from patience import scaled, until


def sharded(bench: Any, **changes: Any) -> JobRequest:
    folder = str(bench.folder / "out")
    return bench.request(**{"output": folder, "shard_output": True, **changes})


@pytest.fixture
def umask() -> Iterator[None]:
    """Colleagues of the group may read what is written, others nothing."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {one.name: oct(one.stat().st_mode & 0o7777) for one in folder.iterdir()}


@pytest.mark.usefixtures("umask")
def test_outputs_are_as_readable_as_other_files_and_the_rest_is_private(
    service: JobService, bench: Any, swarm_home: Path
) -> None:
    shared = bench.folder / "shared"
    shared.mkdir()
    group = 4242 if os.geteuid() == 0 else os.getgroups()[-1]
    os.chown(shared, -1, group)
    shared.chmod(0o2770)
    bench.write(20)
    service.submit(bench.request(output=str(shared / "out.jsonl")))
    assert service.wait("mine").status is JobStatus.SUCCEEDED
    service.show_results("mine", export=shared / "out.csv")
    service.report("mine", output=shared / "pages" / "page.html")
    service.report("mine")
    request = sharded(bench, output=str(shared / "out"), limit=5, external_id="folder")
    service.submit(request)
    assert service.wait("folder").status is JobStatus.SUCCEEDED
    assert modes(shared) == {
        "out.jsonl": "0o640",
        "out.jsonl.manifest.json": "0o640",
        "out.csv": "0o640",
        "out": "0o2750",
        "pages": "0o2750",
    }
    assert set(modes(shared / "out").values()) == set(modes(shared / "pages").values()) == {"0o640"}
    assert {one.stat().st_gid for one in shared.rglob("*")} == {group}
    private = [one for one in swarm_home.rglob("*") if one.stat().st_mode & 0o077]
    assert private == []


def test_results_before_the_end_and_after_it(service: JobService, bench: Any, answer: Any) -> None:
    bench.write(400)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=scaled(0.1))
    bench.server.answers_at_most = 100
    handle = service.submit(sharded(bench, max_concurrency=8))
    until(lambda: bench.server.answered.total() == 100)
    with pytest.raises(JobError, match="has not published its output"):
        service.results(handle)

    def some() -> pa.Table | None:
        found = service.results(handle, partial=True)
        return found if found.num_rows else None

    so_far = until(some)
    for row in so_far.to_pylist():
        assert (row["answer"], row["_error"]) == (f"P{row['n']}", None)
    bench.server.answers_at_most = None
    assert service.cancel(handle).status is JobStatus.CANCELLED
    stopped = service.show_results("mine", partial=True, rows=2)
    assert so_far.num_rows <= stopped.rows < stopped.rows_total == 400
    assert len(stopped.first_rows) == 2
    with pytest.raises(JobError, match="has not published its output"):
        service.results(handle)
    with pytest.raises(JobError, match="There is no manifest"):
        service.verify(handle)

    bench.server.behave = lambda _prompt, _nth: answer()
    again = service.resume(handle)
    assert service.wait(again).status is JobStatus.SUCCEEDED
    table = service.results(again)
    assert table.column("answer").to_pylist() == [f"P{number}" for number in range(400)]
    assert service.verify(again).whole
    exported = bench.folder / "all.jsonl"
    told = service.show_results(again, rows=0, export=exported)
    assert (told.rows, told.first_rows, told.exported) == (400, (), exported)
    assert len(exported.read_text().splitlines()) == 400


def test_the_command_line_verifies_and_shows(
    bench: Any, answer: Any, swarm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_API_TOKEN", "the-key")
    cli = CommandLine(swarm_home)
    bench.write(30)
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p7" else 200)
    source, out = bench.folder / "in.parquet", bench.folder / "out"
    where = ["--endpoint", bench.server.url, "--model", "m", "--external-id", "mine"]
    columns = ["--input-column", "prompt", "--output-column", "answer"]
    paths = ["--input", source, "--output", out, "--shard-output"]
    done = cli("job", "submit", *where, *columns, *paths)
    assert done.returncode == 7, done.stderr
    named = ["--external-id", "mine"]

    found = cli.json("job", "verify", *named)
    assert (found["schema_version"], found["whole"], found["rows"]) == (1, True, 30)
    assert found["columns_compared"] == ["n", "prompt"]
    assert "whole     yes" in cli.ok("job", "verify", "--handle-json", "-", stdin=done.stdout)

    shown = cli.json("job", "results", *named, "-n", "8")
    assert (shown["partial"], shown["rows"], shown["rows_failed"]) == (False, 30, 1)
    assert shown["first_rows"][6] == {"n": 6, "prompt": "p6", "answer": "P6", "_error": None}
    assert shown["first_rows"][7]["_error"]["status"] == 400
    text = cli("job", "results", "mine", "--partial")
    assert text.returncode == 0
    assert "P9" in text.stdout
    assert "P10" not in text.stdout
    assert text.stderr == "30 rows, 1 of them failed\n"
    exported = bench.folder / "export.csv"
    text = cli("job", "results", "mine", "--export", exported)
    assert (text.returncode, text.stdout) == (0, "")
    assert len(exported.read_text().splitlines()) == 31
    refused = cli("job", "results", "mine", "--export", out / "x.parquet")
    assert refused.returncode == 2
    assert "belongs to the job's own" in refused.stderr

    shard = out / "part-00000.parquet"
    pq.write_table(pq.read_table(shard).slice(1), shard)
    done = cli("job", "verify", *named, "--json")
    assert done.returncode == 6
    told = json.loads(done.stdout)
    assert told["whole"] is False
    assert [f"error: {finding}" for finding in told["findings"]] == done.stderr.splitlines()
    assert any("29 rows instead of 30" in finding for finding in told["findings"])
    assert "Traceback" not in done.stderr
    (out / "_manifest.json").unlink()
    done = cli("job", "results", *named)
    assert done.returncode == 6
    assert "--partial" in done.stderr


def test_an_unknown_job_has_no_results(service: JobService) -> None:
    for ask in (service.results, service.verify, service.show_results):
        with pytest.raises(JobNotFound):
            ask("ghost")
