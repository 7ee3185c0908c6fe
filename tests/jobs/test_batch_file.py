"""OpenAI Batch files in and out: what is sent and written, and what other inputs make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm.data.registry import backend_of
from domyn_swarm.errors import InvalidInput
from domyn_swarm.jobs import BatchFileJob
from domyn_swarm.jobs.ends import verify_output
from domyn_swarm.jobs.preparation import prepare
from domyn_swarm.jobs.worker import main
from domyn_swarm.jobs.worker_spec import JobSpec
from model_server import KEY, Answer, Bench, ModelServer
from ray_fixtures import RayCluster

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"


def chat(custom_id: str, text: str, **more: Any) -> dict[str, Any]:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **more}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


# Types that no column would hold: content as text and as parts, a parameter of two kinds.
REQUESTS = [
    chat("a", "one", stop="x", tools=[{"type": "function", "function": {"enum": ["a", None]}}]),
    chat("b", "two", stop=["x", "y"]),
    {
        "custom_id": "c",
        "method": "POST",
        "url": EMBED,
        "body": {"input": ["three", "four"], "encoding_format": None},
    },
    {
        **chat("d", ""),
        "body": {"messages": [{"role": "user", "content": [{"type": "text", "text": "é"}]}]},
    },
]


def written(folder: Path, requests: list[Any], name: str = "in.jsonl") -> str:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in requests]
    (folder / name).write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return str(folder / name)


def spec_of(bench: Bench, source: str, **changes: Any) -> JobSpec:
    changes = {
        "job": "domyn_swarm.jobs:BatchFileJob",
        "input_columns": (),
        "output_columns": (),
        "output": str(bench.folder / "out.jsonl"),
        **changes,
    }
    return bench.spec(input=source, **changes)


def worked(bench: Bench, spec: JobSpec) -> int:
    return main([str(bench.job_folder(spec))])


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_requests_are_sent_as_they_stand_and_replies_come_back_as_they_are(
    bench: Bench, server: ModelServer
) -> None:
    reply = {"id": "r-1", "object": "x", "data": [1.0, None, 12345678901234567890, "a\nb"]}
    reply["choices"] = [{"message": {"content": "a", "more": [1.0, None]}}]
    server.behave = lambda _prompt, _nth: Answer(body=reply)
    spec = spec_of(bench, written(bench.folder, REQUESTS))
    assert worked(bench, spec) == 0
    sent = {json.dumps(body, sort_keys=True) for body in server.bodies}
    assert sent == {json.dumps({**one["body"], "model": "m"}, sort_keys=True) for one in REQUESTS}
    rows = lines_of(bench.folder / "out.jsonl")
    assert [row["custom_id"] for row in rows] == ["a", "b", "c", "d"]
    assert {row["id"][:10] for row in rows} == {"batch_req_"}
    assert len({row["id"] for row in rows}) == 4
    for row in rows:
        assert row["response"] == {"status_code": 200, "request_id": "r-1", "body": reply}
        assert row["error"] is None
        assert len(row) == 4
    assert verify_output(spec).whole
    assert worked(bench, spec) == 0
    assert len(server.bodies) == 4


def test_what_fails_is_told_as_openai_tells_it_and_can_be_asked_again(
    bench: Bench, server: ModelServer
) -> None:
    def behave(prompt: str, _nth: int) -> Answer:
        return Answer(status=400 if prompt == "two" else 200, reset=prompt == "one")

    server.behave = behave
    source = written(bench.folder, REQUESTS[:3])
    spec = spec_of(bench, source, retries=0)
    assert worked(bench, spec) == 7
    broken, refused, answered = lines_of(bench.folder / "out.jsonl")
    assert broken["response"] is None
    assert broken["error"]["code"] == "ConnectionBroken"
    assert refused["error"] is None
    assert refused["response"]["status_code"] == 400
    assert "status 400 for two" in refused["response"]["body"]["error"]["message"]
    assert answered["response"]["status_code"] == 200
    found = verify_output(spec)
    assert (found.whole, found.rows_failed, found.columns_compared) == (True, 2, ("custom_id",))
    server.behave = lambda _prompt, _nth: Answer()
    assert worked(bench, spec_of(bench, source, retry_failed=True)) == 0
    assert [one["response"]["status_code"] for one in lines_of(bench.folder / "out.jsonl")] == [
        *(200, 200, 200)
    ]
    assert len(server.bodies) == 5


def test_an_output_that_was_changed_is_found(bench: Bench) -> None:
    spec = spec_of(bench, written(bench.folder, REQUESTS[:2]))
    assert worked(bench, spec) == 0
    path = bench.folder / "out.jsonl"
    path.write_text(path.read_text().replace('"custom_id":"b"', '"custom_id":"x"'))
    assert any("'custom_id' is not the input's" in one for one in verify_output(spec).findings)


def test_the_requests_model_and_defaults(bench: Bench, server: ModelServer) -> None:
    source = written(bench.folder, [chat("a", "one", temperature=0.5), chat("b", "two")])
    kwargs = {"keep_model": True, "temperature": 0, "extra_body": {"top_k": 2}}
    assert worked(bench, spec_of(bench, source, job_kwargs=kwargs)) == 0
    bodies = {body["messages"][0]["content"]: body for body in server.bodies}
    assert [bodies[name]["temperature"] for name in ("one", "two")] == [0.5, 0]
    assert {(body["model"], body["top_k"]) for body in server.bodies} == {("gpt-4o", 2)}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[]", "line 2, is no JSON object: Expected `object`"),
        ('{"custom_id": "b", "body": {}}', "missing required field `url`"),
        ({**chat("b", "x"), "method": "GET"}, "method is 'GET'"),
        ({**chat("b", "x"), "url": "http://e.com/v1/x"}, "does not begin with '/v1/'"),
        ({**chat("b", "x"), "body": "x"}, "body is no object"),
        ({**chat("b", "x"), "custom_id": 5}, "custom_id"),
        (chat("a", "x"), "custom_id"),  # twice
    ],
)
def test_a_line_that_is_no_request_is_refused_before_anything_is_asked(
    bench: Bench, server: ModelServer, line: Any, why: str
) -> None:
    source = written(bench.folder, [chat("a", "one"), line])
    with pytest.raises(InvalidInput) as caught:
        prepare(spec_of(bench, source))
    assert why in caught.value.message
    assert not server.bodies


def test_streams_are_row_errors(bench: Bench) -> None:
    source = written(bench.folder, [chat("a", "one", stream=True), chat("b", "two")])
    assert worked(bench, spec_of(bench, source)) == 7
    first, second = lines_of(bench.folder / "out.jsonl")
    assert "no streams" in first["error"]["message"]
    assert second["error"] is None


@pytest.mark.parametrize("backend", [None, "arrow", "pandas", "polars"])
def test_every_library_reads_them_and_parquet_has_columns(
    bench: Bench, server: ModelServer, backend: str | None
) -> None:
    source = written(bench.folder, [chat("a", "one", stop="x"), chat("b", "two")])
    target = str(bench.folder / "out.parquet")
    kwargs = {"keep": ["usage"]}
    spec = spec_of(bench, source, output=target, data_backend=backend, job_kwargs=kwargs)
    assert worked(bench, spec) == 0
    assert [body.get("stop") for body in server.bodies] in (["x", None], [None, "x"])
    assert all(body.keys() <= {"messages", "stop", "model"} for body in server.bodies)
    rows = pq.read_table(target).to_pylist()
    assert [row["custom_id"] for row in rows] == ["a", "b"]
    assert [json.loads(row["response"])["body"]["usage"]["prompt_tokens"] for row in rows] == [3, 3]
    assert [row["prompt_tokens"] for row in rows] == [3, 3]


FRAMES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "arrow": pa.table,
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "polars-lazy": pl.LazyFrame,
}


@pytest.mark.parametrize("kind", FRAMES)
def test_frames(server: ModelServer, kind: str) -> None:
    requests = [chat("a", "one", stop="x"), chat("b", "two")]
    columns = {name: [one[name] for one in requests] for name in ("custom_id", "url", "body")}
    frame = FRAMES[kind](columns)
    out = BatchFileJob().run(frame, endpoint=server.url, model="m", api_key=KEY, progress=False)
    assert type(out) is type(frame)
    backend = backend_of(out)
    rows = pa.Table.from_batches(backend.batches(out), backend.schema(out)).to_pylist()
    assert [[*row] for row in rows] == [["custom_id", "response"]] * 2
    texts = [
        json.loads(row["response"])["body"]["choices"][0]["message"]["content"] for row in rows
    ]
    assert texts == ["ONE", "TWO"]


RAY = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


@RAY
def test_a_ray_cluster_answers_them_and_goes_on_where_it_was(
    bench: Bench, server: ModelServer, ray_cluster: RayCluster
) -> None:
    requests = [chat(f"id-{n}", f"text {n}", **({"stop": "x"} if n % 2 else {})) for n in range(60)]
    source = written(bench.folder, requests)
    server.behave = lambda prompt, _: Answer(status=400 if prompt == "text 7" else 200)
    spec = spec_of(bench, source, data_backend="ray", retries=0)
    assert worked(bench, spec) == 7
    sent = {json.dumps(body, sort_keys=True) for body in server.bodies}
    assert sent == {json.dumps({**one["body"], "model": "m"}, sort_keys=True) for one in requests}
    rows = lines_of(bench.folder / "out.jsonl")
    assert [row["custom_id"] for row in rows] == [f"id-{n}" for n in range(60)]
    assert [row["response"]["status_code"] for row in rows] == [*[200] * 7, 400, *[200] * 52]
    texts = [row["response"]["body"]["choices"][0]["message"]["content"] for row in rows[:7]]
    assert texts == [f"TEXT {n}" for n in range(7)]
    assert verify_output(spec).rows_failed == 1
    server.behave = lambda _prompt, _nth: Answer()
    again = spec_of(bench, source, data_backend="ray", retry_failed=True)
    assert worked(bench, again) == 0
    assert {row["response"]["status_code"] for row in lines_of(bench.folder / "out.jsonl")} == {200}
    assert len(server.bodies) == 61


@RAY
@pytest.mark.parametrize("as_text", [True, False])
def test_a_ray_dataset(server: ModelServer, ray_cluster: RayCluster, as_text: bool) -> None:
    import ray.data

    requests = [chat("a", "one", stop="x"), chat("b", "two")]
    columns = {name: [one[name] for one in requests] for name in ("custom_id", "url", "body")}
    if as_text:
        columns["body"] = [json.dumps(body) for body in columns["body"]]
    frame = ray.data.from_arrow(pa.table(columns))
    out = BatchFileJob().run(frame, endpoint=server.url, model="m", api_key=KEY, progress=False)
    rows = out.take_all()
    assert [[*row] for row in rows] == [["custom_id", "response"]] * 2
    texts = [
        json.loads(row["response"])["body"]["choices"][0]["message"]["content"] for row in rows
    ]
    assert texts == ["ONE", "TWO"]
    assert sorted(body.get("stop", "") for body in server.bodies) == ["", "x"]


def test_a_path_in_python(server: ModelServer, tmp_path: Path) -> None:
    source = written(tmp_path, REQUESTS)
    out = BatchFileJob().run(source, endpoint=server.url, model="m", api_key=KEY, progress=False)
    assert out.column_names == ["custom_id", "response"]
    assert out.num_rows == 4
