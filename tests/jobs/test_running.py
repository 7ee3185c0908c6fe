"""A job over a frame, in this process: the same engine, checkpoint and resume as when submitted."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm import job
from domyn_swarm.batch.outcomes.row_outcomes import RowError
from domyn_swarm.data.registry import backend_of
from domyn_swarm.errors import ConfigError, InvalidInput, JobError
from domyn_swarm.jobs import ChatCompletionJob, MultiTurnChatCompletionJob
from domyn_swarm.jobs.progress_display import SettledRow
from model_server import KEY, Answer, ModelServer
from patience import limit_s, scaled, until

FRAMES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "arrow": pa.table,
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "polars-lazy": pl.LazyFrame,
}


@job(input_columns=["prompt"], output_schema={"answer": str, "size": int})
async def shout(item: str, client: Any, model: str) -> dict[str, Any]:
    reply = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": item}]
    )
    text = reply.choices[0].message.content
    return {"answer": text, "size": len(text)}


@pytest.fixture
def asked(server: ModelServer) -> Callable[..., Any]:
    """Runs `shout`, or the job given, with the server's endpoint and key."""

    def run(data: Any, one: Any = shout, **settings: Any) -> Any:
        settings = {"progress": False, **settings}
        return one.run(data, endpoint=server.url, model="m", api_key=KEY, **settings)

    return run


def columns(rows: int, start: int = 0) -> dict[str, Any]:
    numbers = range(start, start + rows)
    return {"n": list(numbers), "prompt": [f"p{n}" for n in numbers]}


def rows_of(frame: Any) -> list[dict[str, Any]]:
    backend = backend_of(frame)
    return pa.Table.from_batches(backend.batches(frame), backend.schema(frame)).to_pylist()


def expected(rows: int) -> list[dict[str, Any]]:
    return [
        {"n": n, "prompt": f"p{n}", "answer": f"P{n}", "size": len(f"p{n}")} for n in range(rows)
    ]


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("rows", [0, 1, 500])
def test_a_frame_comes_back_as_the_same_kind(
    asked: Callable[..., Any], server: ModelServer, kind: str, rows: int
) -> None:
    frame = FRAMES[kind](columns(500))
    frame = backend_of(frame).part(frame, None, 0, rows)
    out = asked(frame)
    assert type(out) is type(frame)
    assert rows_of(out) == expected(rows)
    assert sum(server.asked.values()) == rows
    assert rows_of(asked(frame)) == expected(rows)
    assert sum(server.asked.values()) == rows


def test_a_frame_without_rows_may_have_no_columns(
    asked: Callable[..., Any], server: ModelServer
) -> None:
    for frame in (pd.DataFrame([]), pl.DataFrame(), pa.table({})):
        out = asked(frame)
        assert (type(out), rows_of(out)) == (type(frame), [])
        assert list(backend_of(out).schema(out).names) == ["prompt", "answer", "size"]
    assert not server.asked


def test_what_one_library_began_another_goes_on_with(
    asked: Callable[..., Any], server: ModelServer
) -> None:
    for at, make in enumerate(FRAMES.values(), 1):
        assert rows_of(asked(make(columns(100 * at)))) == expected(100 * at)
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == 400


def test_files_come_back_as_an_arrow_table(
    asked: Callable[..., Any], server: ModelServer, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns(30)), tmp_path / "in.parquet")
    assert asked(tmp_path / "in.parquet").to_pylist() == expected(30)
    assert asked(str(tmp_path / "in.parquet"), limit=7).to_pylist() == expected(7)
    assert asked(pd.DataFrame(columns(30)), limit=3).to_dict("records") == expected(3)
    assert sum(server.asked.values()) == 30


def test_rows_without_an_answer_say_why(asked: Callable[..., Any], server: ModelServer) -> None:
    server.behave = lambda prompt, _: Answer(status=400 if prompt == "p1" else 200)
    out = asked(pl.DataFrame(columns(3)))
    assert out["_error"].is_null().to_list() == [True, False, True]
    assert out["_error"][1]["status"] == 400
    assert out["answer"].to_list() == ["P0", None, "P2"]
    server.behave = lambda _prompt, _nth: Answer()
    assert "_error" in asked(pl.DataFrame(columns(3))).columns
    assert asked(pl.DataFrame(columns(3)), retry_failed=True).rows(named=True) == expected(3)
    assert server.asked == {"p0": 1, "p1": 2, "p2": 1}


def test_without_progress_it_is_silent_and_the_hooks_fire(
    asked: Callable[..., Any], server: ModelServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.behave = lambda prompt, _: Answer(status=400 if prompt == "p5" else 200)
    progress: list[tuple[int, int | None]] = []
    batches: list[SettledRow] = []
    errors: list[tuple[int, RowError]] = []
    asked(
        pa.table(columns(20)),
        on_progress=lambda done, total: progress.append((done, total)),
        on_batch=batches.extend,
        on_row_error=lambda row, error: errors.append((row, error)),
        on_cancel=lambda: pytest.fail("nobody cancelled"),
    )
    assert capfd.readouterr() == ("", "")
    assert progress[-1] == (20, 20)
    assert sorted(one.row for one in batches) == list(range(20))
    by_row = {one.row: one for one in batches}
    assert by_row[3].output == {"answer": "P3", "size": 2}
    assert by_row[5].output is None
    assert [(row, error.status) for row, error in errors] == [(5, 400)]


def test_a_terminal_shows_how_far_it_is_and_a_log_only_what_is_wrong(
    asked: Callable[..., Any], server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryFile("w+") as log:
        monkeypatch.setattr(sys, "stderr", log)
        asked(pa.table(columns(20)), progress=True)
        assert log.tell() == 0
        server.behave = lambda prompt, _: Answer(status=400 if prompt == "p25" else 200)
        asked(pa.table(columns(30)), progress=True)
        log.seek(0)
        assert log.read().startswith("shout: 30/30 rows (10 asked now, 20 before), 1 failed")
    controller, terminal = os.openpty()
    with os.fdopen(terminal, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        asked(pa.table(columns(20)), progress=True)
        assert b"shout: 20/20 rows (0 asked now, 20 before)" in os.read(controller, 10_000)
        monkeypatch.undo()
    os.close(controller)


def test_without_a_checkpoint_nothing_is_left_behind(
    asked: Callable[..., Any], server: ModelServer, swarm_home: Path, tmp_path: Path
) -> None:
    for make in FRAMES.values():
        assert rows_of(asked(make(columns(5)), checkpoint=False)) == expected(5)
    assert not swarm_home.exists()
    assert not list(tmp_path.iterdir())
    assert set(server.asked.values()) == {len(FRAMES)}


def test_a_checkpoint_of_ones_own_and_a_tag(
    asked: Callable[..., Any], server: ModelServer, tmp_path: Path, swarm_home: Path
) -> None:
    table = pa.table(columns(5))
    asked(table, checkpoint_dir=tmp_path / "mine")
    asked(table, checkpoint_dir=tmp_path / "mine", tag="again")
    asked(table, checkpoint_dir=tmp_path / "mine", resume=False)
    assert set(server.asked.values()) == {3}
    assert len(list((tmp_path / "mine").iterdir())) == 2
    assert not swarm_home.exists()


@pytest.mark.parametrize(
    ("data", "settings", "why"),
    [
        ({"text": ["a"]}, {}, "'prompt'"),
        ({"prompt": ["a", "b"], "id": [1, 1]}, {"id_column": "id"}, "row 0"),
        ({"prompt": ["a", "b"], "id": [1, None]}, {"id_column": "id"}, "null in row 1"),
        ({"prompt": ["a"], "answer": ["b"]}, {}, "'answer'"),
    ],
)
def test_wrong_data_is_refused_before_the_first_request(
    asked: Callable[..., Any],
    server: ModelServer,
    data: dict[str, Any],
    settings: dict[str, Any],
    why: str,
) -> None:
    for make in FRAMES.values():
        with pytest.raises(InvalidInput, match=why):
            asked(make(data), shout(**settings))
    assert not server.asked


def test_files_are_read_as_they_are_said_to_be(asked: Callable[..., Any], tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id;prompt\n007;café\n", encoding="cp1252")
    reading = {"encoding": "cp1252", "delimiter": ";", "types": {"id": "int"}}
    out = asked(source, **reading)
    assert out.to_pylist() == [{"id": 7, "prompt": "café", "answer": "CAFÉ", "size": 4}]
    with pytest.raises(ConfigError, match="utf-99"):
        asked(source, encoding="utf-99")
    with pytest.raises(ConfigError, match="these are no files"):
        asked(pa.table(columns(2)), encoding="cp1252")


def test_what_run_does_not_know_is_refused(asked: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"'temperature'[\s\S]*job\(temperature="):
        asked(pa.table(columns(1)), temperature=1)
    with pytest.raises(ConfigError, match=r"max_concurrency is an option of the job"):
        asked(pa.table(columns(1)), max_concurency=1)
    with pytest.raises(ConfigError, match="mean 'checkpoint'"):
        asked(pa.table(columns(1)), chekpoint=False)
    with pytest.raises(ConfigError, match=r"list \(builtins\)"):
        asked(["a"])


async def test_in_a_notebook_where_a_loop_runs_already(
    asked: Callable[..., Any], server: ModelServer
) -> None:
    assert rows_of(asked(pa.table(columns(10)))) == expected(10)
    with pytest.raises(InvalidInput, match="'prompt'"):
        asked(pa.table({"x": [1]}))
    out = await shout.arun(
        pa.table(columns(10)), endpoint=server.url, model="m", api_key=KEY, progress=False
    )
    assert rows_of(out) == expected(10)
    assert sum(server.asked.values()) == 10


async def test_cancelled_it_keeps_what_was_answered(server: ModelServer) -> None:
    server.behave = lambda _prompt, _nth: Answer(delay_s=0.05)
    server.answers_at_most = 100
    cancelled = asyncio.Event()
    done = asyncio.Event()

    def on_progress(rows: int, _total: int | None) -> None:
        if rows >= 20:
            done.set()

    one = shout(max_concurrency=8)
    where: dict[str, Any] = {"endpoint": server.url, "model": "m", "api_key": KEY}
    running = asyncio.create_task(
        one.arun(
            pa.table(columns(400)),
            **where,
            progress=False,
            on_progress=on_progress,
            on_cancel=cancelled.set,
        )
    )
    await asyncio.wait_for(done.wait(), limit_s())
    running.cancel()
    server.answers_at_most = None
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cancelled.is_set()
    before = sum(server.answered.values())
    assert 20 <= before < 400
    server.behave = lambda _prompt, _nth: Answer()
    out = await one.arun(pa.table(columns(400)), **where, progress=False)
    assert rows_of(out) == expected(400)
    assert set(server.asked.values()) == {1}


def test_a_hook_that_fails_ends_the_run_and_keeps_the_rows(
    asked: Callable[..., Any], server: ModelServer
) -> None:
    server.behave = lambda _prompt, _nth: Answer(delay_s=0.02)

    def fail(_rows: list[SettledRow]) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        asked(pa.table(columns(300)), shout(max_concurrency=4), on_batch=fail)
    assert sum(server.asked.values()) < 300
    assert rows_of(asked(pa.table(columns(300)), shout(max_concurrency=64))) == expected(300)
    assert set(server.asked.values()) == {1}


SCRIPT = """
import sys
import pandas as pd
from domyn_swarm.jobs import ChatCompletionJob, MultiTurnChatCompletionJob

frame = pd.DataFrame({"prompt": [f"p{n}" for n in range(300)]})
one = ChatCompletionJob(input_columns=["prompt"], output_columns=["answer"], max_concurrency=4)
out = one.run(frame, endpoint=sys.argv[1], model="m", api_key="the-key")
print(len(out), out["answer"].isna().sum())
"""


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_goes_on_where_it_was(
    server: ModelServer, tmp_path: Path, blow: signal.Signals
) -> None:
    server.behave = lambda _prompt, _nth: Answer(delay_s=scaled(0.03))
    server.answers_at_most = 20
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), server.url]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    until(lambda: server.answered.total() == 20)
    first.send_signal(blow)
    server.answers_at_most = None
    _, said = first.communicate(timeout=limit_s())
    assert first.returncode == -blow
    if blow is signal.SIGINT:
        [line] = said.splitlines()  # and no traceback
        kept = re.fullmatch(r"Interrupted: (\d+) of 300 rows are done and kept. The same .*", line)
        assert kept is not None, line
        assert int(kept[1]) == server.answered.total()
    server.behave = lambda _prompt, _nth: Answer()
    again = subprocess.run(command, capture_output=True, text=True, timeout=limit_s(), check=True)
    assert again.stdout.split() == ["300", "0"]
    asked_twice = sum(times > 1 for times in server.asked.values())
    assert asked_twice <= (0 if blow is signal.SIGINT else 4)


THREADS = """
import asyncio, sys
import pyarrow as pa
from domyn_swarm.jobs import ChatCompletionJob, MultiTurnChatCompletionJob

table = pa.table({"prompt": [f"p{n}" for n in range(50)]})
one = ChatCompletionJob(input_columns=["prompt"], output_columns=["answer"])
where = {"endpoint": sys.argv[1], "model": "m", "api_key": "the-key", "checkpoint": False}

async def several():
    for _ in range(4):
        one.run(table, **where, progress=False)

asyncio.run(several())
"""


def test_a_process_that_lives_on_may_run_as_often_as_it_likes(server: ModelServer) -> None:
    """Each run has a thread of its own, as in a notebook; what the first loads outlives it."""
    for _ in range(2):
        command = [sys.executable, "-c", THREADS, server.url]
        subprocess.run(command, capture_output=True, timeout=limit_s(), check=True)
    assert set(server.asked.values()) == {8}


def test_a_lazy_frame_of_results_is_read_from_the_checkpoint(
    asked: Callable[..., Any], swarm_home: Path
) -> None:
    out = asked(pl.LazyFrame(columns(10)))
    assert str(swarm_home) in out.explain()
    assert out.select(pl.col("size").sum()).collect().item() == 20


def test_the_key_comes_from_the_environment(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table(columns(2))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    one = ChatCompletionJob(input_columns=["prompt"], output_columns=["answer"])
    out = one.run(table, endpoint=f"{server.url}/v1", model="m", progress=False)
    assert out["answer"].to_pylist() == ["P0", "P1"]
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(JobError, match="HTTP 401"):
        one.run(table, endpoint=server.url, model="m", progress=False, tag="other")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # nothing of it was kept
    out = one.run(table, endpoint=server.url, model="m", progress=False, tag="other")
    assert out["answer"].to_pylist() == ["P0", "P1"]


def test_what_is_no_url_is_refused_before_any_row_is_asked() -> None:
    for url in ("127.0.0.1:8000", "foo", "ftp://a"):
        with pytest.raises(ConfigError, match=r"not a URL that begins with http://"):
            ChatCompletionJob().run(pa.table(columns(2)), endpoint=url, model="m")


def test_a_path_may_begin_with_the_users_home(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in.jsonl").write_text('{"prompt": "p"}\n')
    one = ChatCompletionJob(input_columns=["prompt"], output_columns=["answer"])
    settings = {"endpoint": server.url, "model": "m", "api_key": KEY, "progress": False}
    assert one.run("~/in.jsonl", **settings)["answer"].to_pylist() == ["P"]  # type: ignore[arg-type]


@job(input_columns=["n"], output_schema=["value"])
async def drifting(item: int) -> dict[str, Any]:
    """Whole numbers, then fractions; with nothing before there is something."""
    values: list[Any] = [None, item, item + 0.5]
    return {"value": values[min(item // 700, 2)]}


@job(input_columns=["n"], output_schema=["value"])
async def appearing(item: int) -> dict[str, Any]:
    """Nothing, then structures, then ones with another field."""
    values: list[Any] = [None, {"a": item}, {"a": item, "b": "x"}]
    return {"value": values[min(item // 700, 2)]}


def test_types_of_answers_may_drift_from_batch_to_batch(asked: Callable[..., Any]) -> None:
    told = asked(pa.table(columns(2100)), drifting)["value"]
    assert told.type == pa.float64()
    assert told.to_pylist() == [
        *([None] * 700),
        *map(float, range(700, 1400)),
        *(n + 0.5 for n in range(1400, 2100)),
    ]
    told = asked(pa.table(columns(2100)), appearing)["value"].to_pylist()
    assert told[699:701] == [None, '{"a":700}']  # no struct holds both without loss
    assert told[2099] == '{"a":2099,"b":"x"}'


def test_a_conversation_without_a_question_is_an_error_of_its_row(
    asked: Callable[..., Any], server: ModelServer
) -> None:
    system = {"role": "system", "content": "Be brief."}
    talks = [[system, {"role": "user", "content": f"p{n}"}] for n in range(3)]
    talks[1] = [system]
    rows = asked(pa.table({"messages": talks}), MultiTurnChatCompletionJob()).to_pylist()
    assert [row["conversation"] and row["conversation"][-1]["content"] for row in rows] == [
        "P0",
        None,
        "P2",
    ]
    assert "no user or tool message" in rows[1]["_error"]["message"]
    assert [row["_error"] for row in (rows[0], rows[2])] == [None, None]
    assert server.asked.total() == 2


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ({"limit": "many"}, "int or None"),
        ({"limit": True}, "int or None"),
        ({"checkpoint_dir": 5}, "str or Path or None"),
        ({"tag": 5}, "str or None"),
        ({"resume": "no"}, "bool"),
        ({"retry_class": 1}, "str or list"),
        ({"types": ["int"]}, "dict"),
    ],
)
def test_a_setting_of_another_type_is_refused_before_anything_is_asked(
    given: dict[str, Any], kinds: str, server: ModelServer
) -> None:
    [name] = given
    with pytest.raises(ConfigError, match=rf"run\({name}=.*: {name} is {kinds}\.") as refused:
        ChatCompletionJob(prompt="{{ prompt }}").run(
            pa.table({"prompt": ["a"]}), endpoint=server.url, model="m", **given
        )
    assert "RunKeywords" in refused.value.hint
    assert not server.asked
