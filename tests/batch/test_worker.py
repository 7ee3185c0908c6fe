"""Whole runs through the worker program against a real HTTP server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import warm
from domyn_swarm.batch.checkpoint import lease as leases
from domyn_swarm.batch.output.part_writer import PartWriter
from domyn_swarm.batch.run import engine
from domyn_swarm.errors import InvalidInput, OutputExists
from domyn_swarm.jobs import worker
from domyn_swarm.jobs.preparation import prepare
from domyn_swarm.jobs.worker import main
from model_server import KEY
from patience import limit_s, until


def run_worker(bench: Any, **changes: Any) -> tuple[int, dict[str, Any]]:
    folder = bench.job_folder(bench.spec(**changes))
    before = len(warm.said(folder))
    code = warm.start_worker(folder).wait()
    said = warm.said(folder)[before:]
    assert "Traceback" not in said, said
    return code, {**json.loads((folder / "result.json").read_text()), "log": said}


def test_rows_come_out_in_input_order_with_their_answers(bench: Any) -> None:
    bench.write(500)
    code, result = run_worker(bench)
    assert code == 0
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in range(500)]
    assert pq.read_schema(bench.folder / "out.parquet").names == ["n", "prompt", "answer"]
    assert result["rows_done"] == 500
    assert result["account"]["prompt_tokens"] == sum(len(f"p{n}") for n in range(500))
    assert set(bench.server.asked.values()) == {1}


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_few_rows(bench: Any, rows: int) -> None:
    bench.write(rows)
    assert run_worker(bench)[0] == 0
    assert len(bench.output()) == rows


def test_a_finished_job_run_again_sends_nothing(bench: Any) -> None:
    bench.write(50)
    run_worker(bench)
    bench.server.asked.clear()
    code, result = run_worker(bench)
    assert code == 0
    assert result["rows_resumed"] == 50
    assert not bench.server.asked
    code, _ = run_worker(bench, resume=False)
    assert code == 0
    assert sum(bench.server.asked.values()) == 50


def test_appended_and_changed_rows_alone_are_asked(bench: Any) -> None:
    bench.write(30)
    run_worker(bench)
    bench.server.asked.clear()
    columns = {"n": list(range(35)), "prompt": ["other"] + [f"p{n}" for n in range(1, 35)]}
    pq.write_table(pa.table(columns), bench.folder / "in.parquet")
    assert run_worker(bench)[0] == 0
    assert set(bench.server.asked) == {"other", "p30", "p31", "p32", "p33", "p34"}
    assert bench.output()[0]["answer"] == "OTHER"


def test_rows_with_ids_may_be_reordered(bench: Any) -> None:
    bench.write(300)
    run_worker(bench, id_column="n", limit=200)
    bench.server.asked.clear()
    numbers = list(reversed(range(300)))
    columns = {"n": numbers, "prompt": [f"p{n}" for n in numbers]}
    pq.write_table(pa.table(columns), bench.folder / "in.parquet")
    assert run_worker(bench, id_column="n")[0] == 0
    assert set(bench.server.asked) == {f"p{n}" for n in range(200, 300)}
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in numbers]


def test_row_errors_are_data(bench: Any, answer: Any) -> None:
    bench.write(20)
    bad = {"p3": 400, "p5": 500}
    bench.server.behave = lambda prompt, _nth: answer(status=bad.get(prompt, 200))
    code, result = run_worker(bench, retries=1)
    assert code == 7
    assert result["rows_failed"] == 2
    rows = bench.output()
    assert rows[3]["answer"] is None
    assert rows[3]["_error"] == {
        "type": "RequestRefused",
        "status": 400,
        "message": "HTTP 400: status 400 for p3",
        "attempts": 1,
    }
    assert rows[5]["_error"]["attempts"] == 2
    assert rows[4] == {"n": 4, "prompt": "p4", "answer": "P4", "_error": None}
    assert bench.server.asked["p3"] == 1
    assert bench.server.asked["p5"] == 2


def test_a_time_out_is_a_row_error(bench: Any, answer: Any) -> None:
    bench.write(3)
    bench.server.behave = lambda prompt, _nth: answer(delay_s=5.0 if prompt == "p1" else 0)
    code, _ = run_worker(bench, timeout_s=0.3, retries=0)
    assert code == 7
    assert bench.output()[1]["_error"]["type"] == "RequestTimeout"


def test_passing_trouble_is_retried(bench: Any, answer: Any) -> None:
    bench.write(8)
    firsts = {
        "p0": answer(status=500),
        "p1": answer(status=429, headers={"retry-after": "0.1"}),
        "p2": answer(status=503, headers={"retry-after": "0.1"}),
        "p3": answer(reset=True),
        "p4": answer(body={"choices": "no"}),
    }
    bench.server.behave = lambda prompt, nth: firsts.get(prompt, answer()) if nth == 1 else answer()
    code, result = run_worker(bench)
    rows = {row["prompt"]: row for row in bench.output()}
    assert code == 0
    assert all(rows[f"p{n}"]["answer"] == f"P{n}" for n in range(8))
    assert result["retries"] == 3  # a reply of 200 that is no chat completion is one of them


def test_a_replica_that_has_not_left_the_router_yet_costs_no_attempts(
    bench: Any, answer: Any
) -> None:
    bench.write(8)
    body = {"error": {"code": "call_upstream_connection_failed", "message": "error sending"}}
    away = answer(status=500, body=body)
    bench.server.behave = lambda prompt, nth: away if prompt == "p3" and nth < 3 else answer()
    code, result = run_worker(bench, retries=1)
    assert (code, result["rows_failed"], result["retries"]) == (0, 0, 0)
    assert bench.server.asked["p3"] == 3


def test_a_wholesale_failure_stops_early_and_its_rows_are_asked_again(
    bench: Any, answer: Any
) -> None:
    bench.write(2000)
    bench.server.behave = lambda _prompt, _nth: answer(status=404)
    code, result = run_worker(bench, max_concurrency=16)
    assert code == 6
    assert "RequestRefused: HTTP 404: status #" in result["error"]
    assert sum(bench.server.asked.values()) < 100
    assert not (bench.folder / "out.parquet").exists()
    bench.server.behave = lambda _prompt, _nth: answer()
    assert run_worker(bench)[0] == 0
    assert len(bench.output()) == 2000


def test_a_wrong_key_ends_the_run_at_once_and_the_right_one_goes_on(bench: Any) -> None:
    bench.write(40)
    bench.server.key = "another"
    code, result = run_worker(bench)
    assert code == 6
    assert "RequestRefused: HTTP 401: no key" in result["error"]
    assert "OPENAI_API_KEY" in result["error"]
    bench.server.key = KEY
    code, result = run_worker(bench)
    assert (code, result["rows_failed"]) == (0, 0)
    assert set(bench.server.asked.values()) == {1}


def test_a_key_that_is_withdrawn_pauses_the_job_until_its_file_holds_another(bench: Any) -> None:
    bench.write(200)
    bench.server.answers_at_most = 60
    spec = bench.spec(max_concurrency=8)
    folder = bench.job_folder(spec)
    worker = warm.start_worker(folder)
    until(lambda: bench.server.answered.total() == 60)
    bench.server.key = "another"
    bench.server.answers_at_most = None

    def paused() -> str | None:
        told = json.loads((folder / "progress.json").read_text())
        return told["message"] if told["state"] == "paused" else None

    message = until(paused)
    assert "HTTP 401: no key" in message
    assert "Is the key right" in message
    Path(spec.api_key_file).write_text("another")
    assert worker.wait() == 0
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in range(200)]
    assert message in warm.said(folder)


class Supervisor(threading.Thread):
    """Starts a server again whenever it has died."""

    def __init__(self) -> None:
        super().__init__()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.deaths = 0
        self._over = False
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        """Whether it answers. A job gives up an endpoint on which nobody has ever answered, long
        before a busy machine has started a program.
        """
        assert self.is_alive()
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", self.port)) == 0

    def run(self) -> None:
        options = json.dumps({"latency_s": 0.05, "errors": [{"match": r"\bp9\b", "crash": True}]})
        place = ("--host", "127.0.0.1", "--port", str(self.port))
        program = [sys.executable, "-m", "domyn_swarm.engines.sim_server", "--model", "m", *place]
        while not self._over:
            self._server = subprocess.Popen([*program, "--options", options])
            self.deaths += self._server.wait() == 13

    def end(self) -> None:
        self._over = True
        if self._server is not None:
            self._server.kill()
        self.join()


def test_a_row_that_kills_a_server_is_found_also_among_those_of_one_request(bench: Any) -> None:
    bench.write(40)
    served = Supervisor()
    served.start()
    try:
        until(lambda: served.is_up)
        code, result = run_worker(
            bench,
            endpoint_url=f"http://127.0.0.1:{served.port}",
            job="domyn_swarm.jobs:EmbeddingJob",
            job_kwargs={"batch_size": 8},
            max_concurrency=3,
        )
    finally:
        served.end()
    assert (code, result["rows_failed"], result["retries"]) == (7, 1, 0), result["error"]
    assert served.deaths == 3
    assert bench.output()[9]["_error"]["type"] == "DeadlyRow"
    assert sum(row["answer"] is not None for row in bench.output()) == 39


def test_so_is_one_whose_server_is_back_before_it_is_asked(bench: Any, answer: Any) -> None:
    bench.write(60)
    bench.server.behave = lambda prompt, _nth: answer(delay_s=0.3, dies=prompt == "p9")
    code, result = run_worker(bench, max_concurrency=8)
    # Requests on their way as it restarts may reach the next one: no death is sure then. Exactly
    # three deaths and no retry are proven in virtual time, see test_suspects.py.
    assert (code, result["rows_failed"]) == (7, 1)
    assert bench.server.deaths < 6  # as many as its retries would have cost
    assert bench.output()[9]["_error"]["type"] == "DeadlyRow"
    assert sum(row["answer"] is not None for row in bench.output()) == 59


def test_requests_without_a_reply_in_time_are_told_of(bench: Any, answer: Any) -> None:
    bench.write(6)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=60.0)
    code, result = run_worker(bench, timeout_s=0.3)
    assert code == 6
    assert "the limit of --timeout" in result["error"]
    assert bench.server.asked.total() <= 12
    told = json.loads((bench.folder / "job" / "progress.json").read_text())
    assert "requests got no reply within the limit of 0.3 s (--timeout" in told["message"]


def test_max_failures(bench: Any, answer: Any) -> None:
    bench.write(300)
    bench.server.behave = lambda prompt, _nth: answer(
        status=400 if int(prompt[1:]) % 10 == 0 else 200
    )
    assert run_worker(bench, max_failures="3", max_concurrency=4)[0] == 6
    assert run_worker(bench, max_failures="50%")[0] == 7


@pytest.mark.parametrize(
    ("suffix", "text"),
    [("jsonl", '{"n": 1, "prompt": "p"}\n{"n": 2.5, "prompt": "q"}\n'), ("csv", "prompt\np\nq\n")],
)
def test_a_job_that_does_not_use_pandas_does_not_import_it(
    bench: Any, tmp_path: Path, suffix: str, text: str
) -> None:
    (bench.folder / f"in.{suffix}").write_text(text)
    pandas = tmp_path / "first on the path" / "pandas"
    pandas.mkdir(parents=True)
    (pandas / "__init__.py").write_text("raise SystemExit('pandas is imported')")
    folder = bench.job_folder(bench.spec(input=str(bench.folder / f"in.{suffix}")))
    command = [sys.executable, "-m", "domyn_swarm.jobs.worker", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(pandas.parent)})
    assert [row["answer"] for row in bench.output()] == ["P", "Q"]


def test_without_checkpointing_nothing_is_left_behind(bench: Any) -> None:
    bench.write(10)
    code, result = run_worker(bench, checkpointing=False)
    assert code == 0
    assert result["checkpoint"] is None
    assert not (bench.folder / "checkpoints").exists()


def test_a_changed_parameter_gets_new_answers_and_is_named(bench: Any) -> None:
    bench.write(5)
    run_worker(bench, job_kwargs={"temperature": 0.0}, output=str(bench.folder / "a.parquet"))
    bench.server.asked.clear()
    code, result = run_worker(
        bench, job_kwargs={"temperature": 0.5}, output=str(bench.folder / "b.parquet")
    )
    assert code == 0
    assert sum(bench.server.asked.values()) == 5
    assert "params.temperature: 0.0 → 0.5" in result["log"]
    assert bench.server.bodies[-1]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("mode", "columns"),
    [
        ("append", ["n", "prompt", "answer"]),
        ("replace", ["n", "answer"]),
        ("io_only", ["prompt", "answer"]),
    ],
)
def test_output_modes(bench: Any, mode: str, columns: list[str]) -> None:
    bench.write(4)
    assert run_worker(bench, output_mode=mode)[0] == 0
    assert pq.read_schema(bench.folder / "out.parquet").names == columns


def test_concurrency_is_obeyed_and_used(bench: Any, answer: Any) -> None:
    bench.write(60)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.05)
    run_worker(bench, max_concurrency=7)
    assert bench.server.most_at_once == 7


def test_a_second_driver_says_who_holds_the_job(bench: Any, answer: Any) -> None:
    bench.write(10)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=limit_s())
    folder = bench.job_folder(bench.spec())
    command = [sys.executable, "-m", "domyn_swarm.jobs.worker", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        until(lambda: bench.server.asked or first.poll() is not None)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 6
        assert f"process {first.pid}" in second.stderr
        assert first.poll() is None
        first.kill()


def test_a_later_run_of_a_job_waits_for_the_driver_of_the_run_before(
    bench: Any, answer: Any
) -> None:
    """That may live on a node that Slurm has given up."""
    bench.write(10)
    bench.server.behave = lambda _prompt, nth: answer(delay_s=limit_s() if nth == 1 else 0)
    folder = bench.job_folder(bench.spec())
    first = warm.start_worker(folder)
    until(lambda: bench.server.asked)
    (folder / "runs.json").write_text('{"number": 2}')
    second = warm.start_worker(folder)
    until(lambda: "It is waited for" in warm.said(folder))
    first.kill()
    assert second.wait() == 0
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in range(10)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_columns": ("nope",)}, "no column 'nope'"),
        ({"input": "nowhere.parquet"}, "no input at nowhere.parquet"),
        ({"id_column": "twice"}, "The id 7 in column 'twice' stands in row 0 and in row 2"),
        ({"id_column": "holes"}, "null in row 1"),
        ({"output_columns": ("n",)}, "already in the input"),
        ({"output": "x.txt"}, "its name says no kind of file"),
    ],
)
def test_bad_input_is_refused_before_the_first_request(
    bench: Any, changes: dict[str, Any], words: str
) -> None:
    columns = {"n": [1, 2, 3], "prompt": ["a", "b", "c"], "twice": [7, 8, 7], "holes": [1, None, 2]}
    pq.write_table(pa.table(columns), bench.folder / "in.parquet")
    with pytest.raises(InvalidInput) as caught:
        prepare(bench.spec(**changes))
    assert words in str(caught.value)


def test_a_torn_input_is_refused(bench: Any) -> None:
    path: Path = bench.write(100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InvalidInput, match="cannot be read as Parquet"):
        prepare(bench.spec())


def test_a_foreign_output_is_not_overwritten(bench: Any) -> None:
    bench.write(3)
    (bench.folder / "out.parquet").write_text("mine")
    with pytest.raises(OutputExists):
        prepare(bench.spec())


def test_auto_concurrency_climbs_to_what_the_server_can_do(bench: Any, answer: Any) -> None:
    bench.write(1500)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.1)
    code, _ = run_worker(bench)
    assert code == 0
    assert bench.server.most_at_once > 64  # where it began


@pytest.mark.parametrize("name", ["api_key_file", "collector_key_file"])
def test_a_key_that_is_gone_is_one_clear_error(bench: Any, name: str) -> None:
    bench.write(3)
    place = bench.folder / "endpoint.json"
    place.write_text(json.dumps({"url": bench.server.url, "collector_url": bench.server.url}))
    changes = {"endpoint_url": None, "endpoint_file": str(place), name: "/gone/key"}
    code, result = run_worker(bench, **changes)
    assert code == 6
    assert "/gone/key: No such file or directory" in result["error"]
    assert "status" in result["error"]
    assert not bench.server.asked


def test_a_stop_while_the_output_is_written_comes_too_late(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is answered and published by then: that is what the job says."""
    write = engine.publish

    def stopped_meanwhile(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        counts = write(*arguments)
        assert noticed.wait(limit_s())
        return counts

    noticed = threading.Event()
    stop = engine.BatchRun.stop
    monkeypatch.setattr(engine.BatchRun, "stop", lambda run: (stop(run), noticed.set()))
    monkeypatch.setattr(engine, "publish", stopped_meanwhile)
    bench.write(10)
    folder = bench.job_folder(bench.spec())
    assert main([str(folder)]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["output"] == str(bench.folder / "out.parquet")
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in range(10)]


def test_a_driver_that_loses_its_job_as_it_publishes_writes_nothing(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PartWriter.finish

    def lost_by_then(self: PartWriter) -> Any:
        for lease in (bench.folder / "checkpoints").glob("*/*/lease-*.json"):
            lease.with_name("lease-000002.json").write_text("{}")
            monkeypatch.setattr(leases, "_UNRENEWED_S", 0.0)  # it was silent meanwhile
        return write(self)

    monkeypatch.setattr(PartWriter, "finish", lost_by_then)
    bench.write(10)
    folder = bench.job_folder(bench.spec())
    assert main([str(folder)]) == 6
    error = json.loads((folder / "result.json").read_text())["error"]
    assert error.startswith("Another driver took over the checkpoint")
    assert not (bench.folder / "out.parquet").exists()


def test_a_driver_that_loses_its_job_while_it_waits_for_answers_sends_no_more(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    bench.server.answers_at_most = 0
    bench.write(50)

    def take_over() -> None:
        until(lambda: bench.server.asked.total() == 4)
        [lease] = (bench.folder / "checkpoints").glob("*/*/lease-*.json")
        lease.with_name("lease-000002.json").write_text("{}")

    other = threading.Thread(target=take_over)
    other.start()
    folder = bench.job_folder(bench.spec(max_concurrency=4))
    assert main([str(folder)]) == 6
    other.join()
    error = json.loads((folder / "result.json").read_text())["error"]
    assert error.startswith("Another driver took over the checkpoint")
    assert bench.server.asked.total() == 4


def test_files_are_written_and_synced_beside_the_requests(
    bench: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that takes its time holds no request up; results alone are written at once."""
    on_the_loop: list[str] = []

    def note(call: Any) -> Any:
        def noted(descriptor: Any, *rest: Any) -> Any:
            if threading.current_thread() is threading.main_thread() and running:
                on_the_loop.append(f"{call.__name__} {descriptor}")
            return call(descriptor, *rest)

        return noted

    running: list[bool] = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, note(getattr(os, name)))
    run = engine.BatchRun.run

    async def noted_run(self: Any, *arguments: Any) -> bool:
        running.append(True)
        try:
            return await run(self, *arguments)
        finally:
            running.clear()

    monkeypatch.setattr(engine.BatchRun, "run", noted_run)
    monkeypatch.setattr(worker, "_PROGRESS_S", 0.01)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.02)
    bench.write(40)
    assert main([str(bench.job_folder(bench.spec(max_concurrency=4)))]) == 0
    assert on_the_loop == []


def test_a_bug_leaves_a_reason(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LookupError("no such thing")

    monkeypatch.setattr(engine, "pending_rows", broken)
    bench.write(1)
    folder = bench.job_folder(bench.spec())
    with pytest.raises(LookupError):
        main([str(folder)])
    assert json.loads((folder / "result.json").read_text())["error"].startswith(
        "LookupError: no such thing"
    )


def test_a_job_whose_file_is_gone_says_so(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 6
    error = json.loads((tmp_path / "result.json").read_text())["error"]
    assert error.startswith(f"Cannot use {tmp_path / 'job.json'}: No such file or directory.")
