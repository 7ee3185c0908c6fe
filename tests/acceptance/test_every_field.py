"""Every field of a job's request reaches the engine, whatever the endpoint's router makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acceptance.conftest import Standing
from clients import post
from domyn_swarm.batch.run.plain_requests import is_plain

CHAT = "/v1/chat/completions"
LAST = {"role": "user", "content": "every field"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}", "zzz": 1}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}, "zzz": 1}
PICTURE = {"type": "image_url", "image_url": {"url": "http://a/b.png", "zzz": 1}, "uuid": "u"}


def chat(*messages: dict[str, Any], **more: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": [*messages, LAST], **more}


REQUESTS = [
    chat({"role": "assistant", "content": "b", "prefix": True, "refusal": None}),
    chat({"role": "tool", "content": "t", "tool_call_id": "c", "name": "f"}),
    chat({"role": "assistant", "content": None, "tool_calls": [CALL]}, tools=[TOOL]),
    chat({"role": "assistant", "content": "b", "reasoning": "r", "reasoning_content": "s"}),
    chat(
        {"role": "user", "content": [PICTURE, {"type": "text", "text": "t", "cache_control": {}}]}
    ),
    chat({"role": "critic", "content": "no role of OpenAI's"}),
    chat(temperature=0.30000000000000004, top_k=0, stop=["a"] * 9, seed=2**64 - 1, zzz={"a": None}),
    chat(temperature=3.5, min_tokens=9, max_tokens=5, separate_reasoning=True),
    ("/v1/completions", {"prompt": [1, 2, 3], "echo": True}),
    ("/v1/embeddings", {"input": "every field", "truncate_prompt_tokens": 8, "normalize": False}),
    ("/v1/rerank", {"query": "q", "documents": ["a", "b"], "top_n": 1, "zzz": 1}),
    ("/v1/score", {"text_1": "a", "text_2": ["b"], "truncate_prompt_tokens": 4}),
    ("/v1/pooling", {"messages": [LAST], "dimensions": 4}),
    ("/v1/tokenize", {"prompt": "x", "add_special_tokens": False}),
    ("/v1/responses", {"input": "x"}),
]
PLAIN = [
    chat(temperature=0.7, top_p=0.95, max_tokens=3, seed=7),
    ("/v1/embeddings", {"input": ["x"], "dimensions": 8}),
]


def recorded(standing: Standing, job: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What the engines got with a job's mark, by the request's number."""
    lines = map(json.loads, standing.sim.record.read_text("utf-8").splitlines())
    got = {}
    for one in lines:
        mark = str(one["body"].pop("user", ""))
        if mark.startswith(job):
            got[mark.removeprefix(job)] = one["path"], one["body"]
    return got


@pytest.mark.parametrize("dry", [False, True])
def test_a_batch_file_is_asked_as_it_stands(standing: Standing, dry: bool) -> None:
    mark = f"fields-{dry}-"
    source, target = standing.folder / f"{mark}in.jsonl", standing.folder / f"{mark}out.jsonl"
    asked = REQUESTS[:1] if dry else [*REQUESTS, *PLAIN]
    lines = [
        {"custom_id": str(n), "url": url, "body": {**body, "user": f"{mark}{n}"}}
        for n, (url, body) in enumerate(asked)
    ]
    source.write_text("".join(json.dumps({"method": "POST", **line}) + "\n" for line in lines))
    standing.cli.ok(
        *("job", "submit", "domyn_swarm.jobs:BatchFileJob", "--name", "demo", "--no-progress"),
        *("--input", str(source), "--output", str(target), *(["--dry-run"] if dry else [])),
    )
    got = recorded(standing, mark)
    assert len(got) == len(asked)
    for n, (url, body) in enumerate(asked):
        assert got[str(n)] == (url, {**body, "model": "sim-model"})


NO_OPS = {"stream": False, "logprobs": False}  # what the router adds to a plain chat request


def test_what_is_plain_may_pass_the_router(standing: Standing) -> None:
    """As it does where no replica can be reached."""
    endpoint = json.loads(standing.cli.ok("endpoint", "demo", "--json"))
    for n, (path, asked) in enumerate(PLAIN):
        body = {"model": "sim-model", **asked, "user": f"routed-{n}"}
        assert is_plain(path, json.dumps(body).encode(), "sim-model")
        post(endpoint["url"], Path(endpoint["key_file"]), body, path)
    got = recorded(standing, "routed-")
    assert len(got) == len(PLAIN)
    for n, (path, asked) in enumerate(PLAIN):
        added = NO_OPS if path == CHAT else {}
        assert got[str(n)] == (path, {**asked, "model": "sim-model", **added})


def test_options_of_embeddings_reach_the_engine(standing: Standing) -> None:
    source = standing.folder / "texts.jsonl"
    source.write_text('{"text": "some text"}\n')
    options = {"truncate_prompt_tokens": 8, "normalize": False, "user": "e-1"}
    standing.cli.ok(
        *("job", "submit", "domyn_swarm.jobs:EmbeddingJob", "--name", "demo", "--no-progress"),
        *("--input", str(source), "--output", str(standing.folder / "vectors.jsonl")),
        *("--job-kwargs", json.dumps(options)),
    )
    sent = {"model": "sim-model", "input": ["some text"], "truncate_prompt_tokens": 8}
    assert recorded(standing, "e-") == {"1": ("/v1/embeddings", {**sent, "normalize": False})}
