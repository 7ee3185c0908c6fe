"""Every built-in job over frames of every kind: the same answers, and the same requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from domyn_swarm.data.registry import backend_of
from domyn_swarm.jobs import (
    BatchFileJob,
    ChatCompletionJob,
    ChatCompletionPerplexityJob,
    CompletionJob,
    EmbeddingJob,
    MultiChatCompletionJob,
    MultiTurnChatCompletionJob,
    MultiTurnTranslationJob,
    StructuredOutputJob,
    SwarmJob,
    TemplateJob,
)
from model_server import KEY, Answer, ModelServer
from ray_fixtures import RayCluster

LIBRARIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "arrow": pa.table,
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "polars-lazy": pl.LazyFrame,
}
TALK = [
    {"role": "system", "content": "Be brief.", "name": None},
    {"role": "user", "content": "one", "name": "ann"},
    {"role": "user", "content": "two", "name": None},
]
BODY = {"messages": [{"role": "user", "content": "one"}], "stop": ["x"]}
ROWS: dict[str, list[Any]] = {
    "text": ["one", "two"],
    "prompt": ["one", "two"],
    "messages": [TALK, TALK[:2]],
    "heat": [0.5, None],
    "custom_id": ["a", "b"],
    "url": ["/v1/chat/completions"] * 2,
    "body": [BODY, BODY],
}
JOBS: dict[str, SwarmJob] = {
    "chat": ChatCompletionJob(param_columns={"temperature": "heat"}, keep=["usage", "latency"]),
    "reasoning": ChatCompletionJob(parse_reasoning=True, system="Be {{ text }}."),
    "template": TemplateJob(prompt="{{ text }}: {{ messages }}", keep="finish_reason"),
    "completion": CompletionJob(output_columns=["answer"]),
    "several": MultiChatCompletionJob(n=2),
    "perplexity": ChatCompletionPerplexityJob(output_columns=["said", "perplexity", "half"]),
    "turns": MultiTurnChatCompletionJob(),
    "translation": MultiTurnTranslationJob(target_language="Italian"),
    "embedding": EmbeddingJob(output_mode="io_only"),
    "structured": StructuredOutputJob(output_schema={"size": int, "tags": list[str]}),
    "batch": BatchFileJob(),
}


def behave(prompt: str, _nth: int) -> Answer:
    """A reply that every kind of job can read."""
    said = json.dumps({"size": len(prompt), "tags": [prompt]})
    choice = {
        "message": {"role": "assistant", "content": said, "reasoning": prompt[::-1]},
        "text": prompt.upper(),
        "finish_reason": "stop",
        "logprobs": {"content": [{"logprob": -1.0}, {"logprob": -2.0}]},
    }
    texts = prompt.split("|")
    data = [{"index": at, "embedding": [float(len(one))]} for at, one in enumerate(texts)]
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return Answer(body={"id": "r", "choices": [choice] * 2, "data": data, "usage": usage})


def rows_of(frame: Any) -> list[dict[str, Any]]:
    backend = backend_of(frame)
    rows = pa.Table.from_batches(backend.batches(frame), backend.schema(frame)).to_pylist()
    for row in rows:
        row.pop("latency_s", None)
    return rows


def answers(server: ModelServer, frame: Any, job: str) -> tuple[Any, list[str]]:
    """The result's frame, and what was asked, in no order."""
    server.bodies.clear()
    server.behave = behave
    out = JOBS[job].run(
        frame, endpoint=server.url, model="m", api_key=KEY, progress=False, checkpoint=False
    )
    return out, sorted(json.dumps(body, sort_keys=True) for body in server.bodies)


@pytest.mark.parametrize("job", JOBS)
def test_every_library_asks_and_gets_the_same(server: ModelServer, job: str) -> None:
    expected = None
    for make in LIBRARIES.values():
        frame = make(ROWS)
        out, asked = answers(server, frame, job)
        assert type(out) is type(frame)
        rows = rows_of(out)
        assert "_error" not in rows[0]
        assert len(rows) == 2
        expected = expected or (rows, asked)
        assert (rows, asked) == expected


# A run over Ray takes seconds to begin: the others are for `make test-slow`.
OFTEN = {"structured", "turns", "batch"}


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)
@pytest.mark.parametrize(
    "job", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in JOBS]
)
def test_ray_as_well(server: ModelServer, ray_cluster: RayCluster, job: str) -> None:
    import ray

    table = pa.table(ROWS)
    expected, asked = answers(server, table, job)
    out, asked_by_ray = answers(server, ray.data.from_arrow(table), job)
    assert rows_of(out) == rows_of(expected)
    if job != "embedding":  # its rows share requests, and not always the same ones
        assert asked_by_ray == asked
