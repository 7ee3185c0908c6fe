"""Answers that are none: kept with their rows, counted, and judged as one likes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from domyn_swarm.batch.checkpoint.checkpoint_folder import Checkpoint
from domyn_swarm.batch.checkpoint.index import FrameFiles, PositionalIndex, RowIndex
from domyn_swarm.batch.checkpoint.job_store import Asker, JobPlace, ResultsFolder
from domyn_swarm.batch.checkpoint.journal import Journal
from domyn_swarm.batch.checkpoint.request_identity import JobIdentity
from domyn_swarm.batch.checkpoint.segments import checkpoint_files
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.inspection.settled import group_failures
from domyn_swarm.batch.outcomes.row_outcomes import Result, RowTrace, RowValue, current_trace
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.outcomes.verdicts import (
    Reading,
    accepted,
    count_verdicts,
    outcome_of,
    verdict_of,
)
from domyn_swarm.batch.output.manifest import read_manifest
from domyn_swarm.batch.run.session import EndpointAccess, RetryPolicy, open_session
from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs import ChatCompletionJob, SwarmJob
from domyn_swarm.jobs.ends import verify_output
from domyn_swarm.jobs.preparation import make_plan
from domyn_swarm.jobs.worker import main
from domyn_swarm.model import ReplyVerdict, verdicts_named
from model_server import KEY, Answer, ModelServer

V = ReplyVerdict
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
# What the first rows are answered with; the others are answered well.
ODD: list[dict[str, Any]] = [
    {"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"},
    {"message": {"content": "half"}, "finish_reason": "length"},
    {"message": {"content": ""}, "finish_reason": "stop"},
    {"message": {"content": None, "refusal": "I will not."}, "finish_reason": "stop"},
    {"message": {"content": None}, "finish_reason": "content_filter"},
    {"message": {"content": None, "tool_calls": CALLS}, "finish_reason": "tool_calls"},
]
ROWS = 10
COUNTED = {V.CUT: 2, V.EMPTY: 1, V.REFUSED: 2, V.TOOL_CALLS: 1, V.COMPLETE: 4}
ASKED = {f"p{number}" for number in range(ROWS)}


def oddly(prompt: str, _nth: int) -> Answer:
    number = int(prompt[1:])
    return Answer(body={"choices": [ODD[number]]}) if number < len(ODD) else Answer()


@pytest.fixture
def odd(bench: Any) -> Any:
    """Ten rows, six of them without a complete answer."""
    bench.write(ROWS)
    bench.server.behave = oddly
    return bench


def worked(bench: Any, **changes: Any) -> tuple[int, dict[str, Any]]:
    code = main([str(bench.job_folder(bench.spec(**changes)))])
    return code, json.loads((bench.folder / "job" / "result.json").read_text())


def failed(bench: Any) -> dict[int, str]:
    rows = [(row["n"], row.get("_error")) for row in bench.output()]
    return {number: error["type"] for number, error in rows if error}


def asked_since(server: ModelServer) -> set[str]:
    asked = {prompt for prompt, count in server.asked.items() if count}
    server.asked.clear()
    return asked


@pytest.mark.parametrize(
    ("accept", "refused"),
    [
        (None, {0: "AnswerCut", 2: "AnswerEmpty"}),
        ("any", {}),
        (
            "complete",
            {
                0: "AnswerCut",
                1: "AnswerCut",
                2: "AnswerEmpty",
                3: "AnswerRefused",
                4: "AnswerRefused",
                5: "AnswerIsToolCalls",
            },
        ),
    ],
)
def test_answers_are_counted_and_accepted_as_asked(
    odd: Any, accept: str | None, refused: dict[int, str]
) -> None:
    code, result = worked(odd, accept=accept, workers=2 if accept == "complete" else 1)
    assert code == (7 if refused else 0)
    assert (result["verdicts"], result["rows_failed"]) == (COUNTED, len(refused))
    assert failed(odd) == refused
    answers = {row["n"]: row["answer"] for row in odd.output()}
    assert answers[9] == "P9"
    assert answers[1] == (None if 1 in refused else "half")
    assert answers[3] == (None if 3 in refused else "I will not.")
    assert 5 in refused or json.loads(answers[5])["tool_calls"] == CALLS
    manifest = read_manifest(odd.folder / "out.parquet.manifest.json")
    assert manifest is not None
    assert (manifest.verdicts, manifest.rows_failed) == (COUNTED, len(refused))
    spec = odd.spec(accept=accept)
    assert verify_output(spec).whole
    groups = group_failures(make_plan(spec).plan)
    told = Counter[tuple[ReplyVerdict, bool]]()
    for group in groups:
        told[group.verdict, group.kept] += group.rows
    assert {verdict: told[verdict, True] + told[verdict, False] for verdict in COUNTED} == {
        **COUNTED,
        V.COMPLETE: 0,
    }
    assert sum(rows for (_, kept), rows in told.items() if not kept) == len(refused)


def test_the_verdict_is_a_column_on_request(odd: Any) -> None:
    worked(odd, accept="any", job_kwargs={"keep": ["verdict", "finish_reason"]})
    rows = odd.output()
    assert Counter(row["verdict"] for row in rows) == {one.value: n for one, n in COUNTED.items()}
    assert [row["finish_reason"] for row in rows[:4]] == ["length", "length", "stop", "stop"]


def test_another_judgement_asks_nothing_again(odd: Any) -> None:
    assert worked(odd, accept="complete")[0] == 7
    assert asked_since(odd.server) == ASKED
    assert worked(odd, accept="any")[0] == 0
    assert odd.output()[1]["answer"] == "half"
    assert "_error" not in odd.output()[1]
    assert worked(odd)[0] == 7
    assert set(failed(odd)) == {0, 2}
    assert asked_since(odd.server) == set()


@pytest.mark.parametrize(
    ("classes", "rows", "how"),
    [
        ((), {0, 2}, {}),
        (("cut",), {0, 1}, {}),
        (("cut",), {0, 1}, {"id_column": "n", "workers": 2}),
        (("empty",), {2}, {"id_column": "n"}),
        (("refused", "tool_calls"), {3, 4, 5}, {}),
        (("error",), set(), {}),
    ],
)
def test_exactly_the_rows_of_a_class_are_asked_again(
    odd: Any, classes: tuple[str, ...], rows: set[int], how: dict[str, Any]
) -> None:
    worked(odd, id_column=how.get("id_column"))
    asked_since(odd.server)
    odd.server.behave = lambda _prompt, _nth: Answer()
    again = {"retry_failed": True, "retry_classes": classes, "override": {"max_tokens": 4000}}
    code, result = worked(odd, **again, **how)
    assert asked_since(odd.server) == {f"p{number}" for number in rows}
    assert all(body["max_tokens"] == 4000 for body in odd.server.bodies[ROWS:])
    left = {0, 2} - rows
    assert (code, set(failed(odd))) == (7 if left else 0, left)
    assert result["verdicts"]["complete"] == 4 + len(rows)
    answers = [row["answer"] for row in odd.output()]
    assert [answers[number] for number in sorted(rows)] == [f"P{n}" for n in sorted(rows)]


def test_an_answer_stays_when_asking_again_comes_to_less(odd: Any) -> None:
    worked(odd)
    worse = {"p1": Answer(status=400), "p3": Answer(text=""), "p5": Answer(text="better")}
    odd.server.behave = lambda prompt, _nth: worse.get(prompt, Answer())
    classes = ("cut", "refused", "tool_calls")
    code, result = worked(odd, retry_failed=True, retry_classes=classes)
    answers = [row["answer"] for row in odd.output()]
    assert (answers[1], answers[3], answers[5]) == ("half", "I will not.", "better")
    assert (code, set(failed(odd))) == (7, {2})
    assert result["rows_failed"] == 1
    assert result["verdicts"] == {"cut": 1, "empty": 1, "refused": 1, "complete": 7}
    worked(odd)
    assert asked_since(odd.server) == ASKED


def test_an_error_in_a_reply_is_asked_again_and_told(odd: Any) -> None:
    busy = {"error": {"message": "upstream overloaded", "code": 502}}
    odd.server.behave = lambda prompt, nth: Answer(
        body=busy if prompt == "p1" or (prompt, nth) == ("p2", 1) else None
    )
    code, result = worked(odd, retries=1)
    assert (code, result["verdicts"]) == (7, {"complete": 9, "error": 1})
    assert odd.output()[1]["_error"] == {
        "type": "ServerFailed",
        "status": 502,
        "message": "the reply is an error: upstream overloaded (code 502)",
        "attempts": 2,
    }
    assert odd.output()[2]["answer"] == "P2"


def test_structured_output_has_the_verdict_of_the_reply_that_decided(odd: Any) -> None:
    good = '{"answer": "a"}'
    told = {
        "p0": [('{"answ', "length")],
        "p1": [("no JSON", "stop"), (good, "stop")],
        "p2": [(good, "length")],
        "p3": [("no JSON", "stop"), ("nor here", "stop")],
        "p4": [("", "content_filter")],
        "p5": [("", "stop"), ("", "stop")],
    }

    def behave(prompt: str, _nth: int) -> Answer:
        asked = odd.server.bodies[-1]["messages"]
        content, reason = told.get(asked[0]["content"], [(good, "stop")])[len(asked) // 2]
        return Answer(
            body={"choices": [{"message": {"content": content}, "finish_reason": reason}]}
        )

    odd.server.behave = behave
    kwargs = {"output_schema": {"answer": "str"}}
    job = {"job": "domyn_swarm.jobs:StructuredOutputJob", "job_kwargs": kwargs}
    code, result = worked(odd, **job, output_columns=(), max_concurrency=1)
    assert (code, set(failed(odd))) == (7, {0, 3, 4, 5})
    assert result["verdicts"] == {"cut": 1, "error": 1, "refused": 1, "empty": 1, "complete": 6}
    assert len(odd.server.bodies) == ROWS + 3


def test_a_conversation_that_called_tools_is_of_that_class(bench: Any) -> None:
    bench.write(2)
    bench.server.behave = lambda prompt, _nth: Answer(
        body={"choices": [ODD[5]]} if prompt == "p1" else None
    )
    job = {"job": "domyn_swarm.jobs:MultiTurnChatCompletionJob", "output_columns": ()}
    code, result = worked(bench, **job)
    assert (code, result["verdicts"]) == (7, {"complete": 1, "tool_calls": 1})
    assert "called tools" in bench.output()[1]["_error"]["message"]


class Own(SwarmJob):
    """What people write."""

    input_columns = ("prompt",)
    output_schema = ("answer", "more")

    async def transform_item(self, item: Any) -> tuple[str, int]:
        reply = await self.client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": item}]
        )
        return json.loads(reply.choices[0].message.content), 1


class Together(SwarmJob):
    """Several rows in a call, each with a request."""

    input_columns = ("prompt",)
    output_schema = ("answer",)
    rows_per_call = 3

    async def transform_items(self, items: list[Any]) -> list[Any]:
        async def ask(item: str) -> Any:
            reply = await self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": item}]
            )
            return reply.choices[0].message.content

        return await asyncio.gather(*map(ask, items))


def test_a_row_does_not_fail_for_the_silence_of_those_in_its_call(server: ModelServer) -> None:
    server.behave = lambda prompt, _nth: Answer(text="" if prompt == "b" else None)
    where = {"endpoint": server.url, "model": "m", "api_key": KEY}
    table = pa.table({"prompt": ["a", "b", "c"]})
    out = Together().run(table, **where, progress=False, checkpoint=False)
    assert out["answer"].to_pylist() == ["A", None, "C"]
    assert [error and error["type"] for error in out["_error"].to_pylist()] == [
        *(None, "AnswerEmpty", None)
    ]


def test_jobs_of_ones_own_have_verdicts_too(server: ModelServer, tmp_path: Any) -> None:
    bodies = [
        {"choices": [{"message": {"content": '"fine"'}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": '"ha'}, "finish_reason": "length"}]},
        {"choices": [{"message": {"content": '"cut"'}, "finish_reason": "length"}]},
        {"choices": []},
    ]
    server.behave = lambda prompt, _nth: Answer(body=bodies[int(prompt)])
    table = pa.table({"prompt": ["0", "1", "2", "3"]})
    heard: list[tuple[int, str]] = []
    settled: list[tuple[int, bool]] = []

    def run(**settings: Any) -> Any:
        job = Own(retries=0, accept=settings.pop("accept", None))
        where = {"endpoint": server.url, "model": "m", "api_key": KEY}
        return job.run(table, **where, progress=False, checkpoint_dir=tmp_path, **settings)

    out = run(
        on_row_error=lambda row, error: heard.append((row, error.type)),
        on_batch=lambda rows: settled.extend((one.row, one.error is None) for one in rows),
        accept="complete",
    )
    assert out["answer"].to_pylist() == ["fine", None, None, None]
    assert sorted(heard) == [(1, "JSONDecodeError"), (2, "AnswerCut"), (3, "BadReply")]
    assert sorted(settled) == [(0, True), (1, False), (2, False), (3, False)]
    assert "no choices" in out["_error"][3].as_py()["message"]
    assert run()["answer"].to_pylist() == ["fine", None, "cut", None]
    assert asked_since(server) == {"0", "1", "2", "3"}
    bodies[1] = bodies[0]
    assert run(retry_class="cut")["answer"].to_pylist() == ["fine", "fine", "cut", None]
    assert asked_since(server) == {"1", "2"}
    with pytest.raises(ConfigError, match="'cutt' is no class"):
        run(retry_class=["cutt"])


async def test_streams_have_verdicts_too() -> None:
    replies = iter(
        [
            b'{"error": {"message": "warming up", "code": 503}}',  # no stream at all
            b'data: {"error": {"message": "no room"}}\n\n',
            b'data: {"choices": [{"index": 0, "delta": {"content": "ha"}}]}\n\n'
            b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}\n\n'
            b"data: [DONE]\n\n",
        ]
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asks = (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST")
        status, reply = ("200 OK", next(replies)) if asks else ("404 Not Found", b"")
        writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode() + reply)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    access = EndpointAccess(lambda: f"http://127.0.0.1:{port}", None)
    trace, tally = RowTrace(), Tally()
    current_trace.set(trace)
    policy = RetryPolicy(retries=2, backoff_initial_s=0.0)
    async with open_session(access, policy, tally, print) as (client, _):
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        said = [chunk.choices[0].delta.content async for chunk in stream]
    listening.close()
    await listening.wait_closed()
    assert said == ["ha", None]
    assert (trace.attempts, verdict_of(trace.code << 1)) == (3, V.CUT)
    repeated = " ".join(tally.repeated)
    assert "warming up" in repeated
    assert "no room" in repeated


@pytest.mark.parametrize("accept", ["complet", 1])
def test_what_can_be_accepted(accept: Any) -> None:
    with pytest.raises(ConfigError, match="accept is"):
        ChatCompletionJob(accept=accept)
    assert verdicts_named("cut, empty") == (V.CUT, V.EMPTY)
    assert verdicts_named(()) == verdicts_named("") == ()
    for wrong in ("complete", "cut,", ["cut", "nope"]):
        with pytest.raises(ConfigError, match="no class of rows"):
            verdicts_named(wrong)


# -- what is kept ----------------------------------------------------------------------------------


class OldRowValue(msgspec.Struct, array_like=True, frozen=True):
    """As checkpoints had it before answers had verdicts."""

    output: bytes
    error: bytes
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    latency_s: float


def test_old_checkpoints_are_read_and_new_ones_by_old_programs() -> None:
    old = OldRowValue(b'{"a":1}', b"", 1, 2, 3, 0.5)
    new = RowValue(b'{"a":1}', b"", 1, 2, 3, 0.5, code=2)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=RowValue)
    assert (read.output, read.code) == (b'{"a":1}', 0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(new), type=OldRowValue) == old
    # Outcomes were 0 for an answer and 1 for an error; they still are.
    assert [verdict_of(outcome) for outcome in (0, 1)] == [V.COMPLETE, V.ERROR]
    assert outcome_of(read) == 0
    assert outcome_of(RowValue(b"", b"{}", 1, 0, 0, 0.0)) == 1


def test_an_outcome_that_a_later_version_may_write_is_read_as_well() -> None:
    counted = count_verdicts(np.arange(256, dtype=np.uint8))
    assert sum(counted.values()) == 256
    assert all(accepted(code, "any") for code in range(128))


def test_rows_that_are_asked_again_are_pending_until_this_run_has_asked_them(tmp_path: Any) -> None:
    place = JobPlace(tmp_path, JobIdentity({"job": "m:J"}), "0" * 16)
    rows = RowKeys(["text"], None)
    keys = np.array([[row + 1, 1] for row in range(3)], np.uint64)

    def kept(row: int, text: bytes, code: int) -> Result:
        return Result(row, keys[row].tobytes(), RowValue(text, b"", 1, 0, 0, 0.1, code))

    def found(index: RowIndex) -> list[bool]:
        settled = index.match(0, keys).found.tolist()
        index.frames.close()
        return settled

    first = Checkpoint(place, rows, Asker("j1"))
    first.append([kept(0, b'"old"', 4), kept(1, b'"old"', 4), kept(2, b'"all"', 0)])
    first.close()
    again = Checkpoint(place, rows, Asker("j1"), again=frozenset({V.CUT}))
    assert found(again.settled()) == [False, False, True]
    again.append([kept(0, b'"cut again"', 4)])
    assert found(again.settled()) == [True, False, True]  # also for the rows of a dead worker
    assert found(again.index()) == [True, True, True]
    again.close()
    third = Checkpoint(place, rows, Asker("j1"))  # as when that run was killed
    assert found(third.settled()) == [True, True, True]
    third.close()


def test_of_answers_that_do_not_count_the_later_one_is_told(tmp_path: Any) -> None:
    def write(generation: int, *values: tuple[int, bytes, int]) -> None:
        journal = Journal(tmp_path, generation)
        rows = [
            Result(
                row,
                np.array([row + 1, 1], np.uint64).tobytes(),
                RowValue(text, b"", 1, 0, 0, 0.1, code),
            )
            for row, text, code in values
        ]
        journal.append(rows)
        journal.close()

    cut, empty = 4, 1
    write(1, (0, b'"cut"', cut), (1, b'"cut"', cut), (2, b'""', empty))
    write(2, (0, b'""', empty), (1, b'"all"', 0), (2, b'"cut"', cut | 1))
    keys = np.array([[row + 1, 1] for row in range(3)], np.uint64)

    def seen(reading: Reading) -> list[tuple[bytes, bool]]:
        frames = FrameFiles([ResultsFolder(tmp_path)], reading)
        found = PositionalIndex(frames).match(0, keys)
        values = [
            frames.value(int(frame), int(row)) if frame >= 0 else None
            for frame, row in zip(found.frame, found.row, strict=True)
        ]
        frames.close()
        return [(b"" if one is None else one.output, one is not None) for one in values]

    assert len(checkpoint_files(tmp_path)) == 2
    assert seen(Reading()) == [(b'"cut"', True), (b'"all"', True), (b"", True)]
    assert seen(Reading("any")) == [(b'""', True), (b'"all"', True), (b'"cut"', True)]
    assert seen(Reading("complete")) == [(b"", True), (b'"all"', True), (b"", True)]
    again = Reading(None, frozenset({V.CUT}), before=2)
    assert seen(again)[0] == (b"", True)  # the second generation's, which is not asked again
    later = Reading(None, frozenset({V.CUT}), before=3)
    assert seen(later) == [(b"", True), (b'"all"', True), (b"", True)]
