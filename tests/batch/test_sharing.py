"""Rows of one value share a request when asked to, whatever happens in between."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm.batch.run.sharing import Shared, SharedRows
from domyn_swarm.errors import ConfigError, JobError
from domyn_swarm.jobs.preparation import prepare
from domyn_swarm.jobs.worker import main

VALUES = [n % 7 for n in range(100)]
DISTINCT = Counter({f"p{n}": 1 for n in range(7)})


def write(bench: Any, values: Sequence[int] = VALUES) -> None:
    columns = {"n": list(range(len(values))), "prompt": [f"p{value}" for value in values]}
    pq.write_table(pa.table(columns), bench.folder / "in.parquet")


def run(bench: Any, **changes: Any) -> tuple[int, dict[str, Any]]:
    folder: Path = bench.job_folder(bench.spec(**{"dedup": "always", **changes}))
    code = main([str(folder)])
    return code, json.loads((folder / "result.json").read_text())


def answers(bench: Any) -> list[str | None]:
    return [row["answer"] for row in bench.output()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"id_column": "n"},
        {"workers": 2, "fingerprint": "off"},
        {"id_column": "n", "fingerprint": "sample"},
        {"dedup": None, "job_kwargs": {"dedup": "always"}},
    ],
)
def test_each_value_is_asked_once_and_its_rows_have_results_of_their_own(
    bench: Any, changes: dict[str, Any]
) -> None:
    write(bench)
    code, result = run(bench, **changes)
    assert code == 0
    assert bench.server.asked == DISTINCT
    assert answers(bench) == [f"P{value}" for value in VALUES]
    assert (result["rows_done"], result["rows_failed"], result["requests"]) == (100, 0, 7)
    assert result["account"]["rows_answered"] == 100
    assert result["account"]["requests"] == 7
    manifest = json.loads((bench.folder / "out.parquet.manifest.json").read_text())
    assert manifest["tokens"]["completion"] == result["account"]["completion_tokens"]
    # Without it nothing is asked either: they are answered.
    bench.server.asked.clear()
    assert run(bench, **{**changes, "dedup": None, "job_kwargs": {}})[0] == 0
    assert not bench.server.asked


def test_by_default_rows_share_nothing(bench: Any) -> None:
    write(bench)
    assert run(bench, dedup=None)[0] == 0
    assert bench.server.asked.total() == 100


def test_rows_that_come_later_get_the_answer_that_is_there(bench: Any) -> None:
    write(bench, VALUES[:5])
    assert run(bench, dedup=None, id_column="n")[0] == 0
    bench.server.asked.clear()
    write(bench, VALUES)
    assert run(bench, id_column="n")[0] == 0
    assert bench.server.asked == Counter({"p5": 1, "p6": 1})
    assert answers(bench) == [f"P{value}" for value in VALUES]


@pytest.mark.parametrize("kept", [0, 1])
def test_a_run_that_ends_before_its_rows_have_their_results_is_resumed_without_a_request(
    bench: Any, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    values = [n % 7 for n in range(5_000)]  # several lots
    write(bench, values)
    results = SharedRows.results

    def killed(shared: SharedRows, index: Any) -> Iterator[list[Shared]]:
        for number, found in enumerate(results(shared, index)):
            if number == kept:
                raise JobError("over")
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(SharedRows, "results", killed)
        assert run(bench)[0] != 0
    code, result = run(bench)
    assert code == 0
    assert bench.server.asked == DISTINCT
    assert (result["rows_done"], result["requests"]) == (5_000, 0)
    assert answers(bench) == [f"P{value}" for value in values]


def test_an_error_is_shared_as_well_and_asked_again_once(bench: Any, answer: Any) -> None:
    write(bench)
    broken = {"p3"}
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt in broken else 200)
    code, result = run(bench)
    assert code == 7
    assert result["rows_failed"] == VALUES.count(3)
    assert bench.server.asked == DISTINCT
    broken.clear()
    code, result = run(bench, retry_failed=True)
    assert code == 0
    assert bench.server.asked == DISTINCT + Counter({"p3": 1})
    assert answers(bench) == [f"P{value}" for value in VALUES]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, True),
        ({"job_kwargs": {"temperature": 0.2}}, True),
        ({"job_kwargs": {"temperature": 0}}, False),
        ({"job_kwargs": {"temperature": 0, "param_columns": {"temperature": "n"}}}, True),
        ({"job": "domyn_swarm.jobs:EmbeddingJob"}, False),
    ],
)
def test_greedy_is_for_answers_that_are_not_drawn_by_chance(
    bench: Any, changes: dict[str, Any], refused: bool
) -> None:
    write(bench)
    spec = bench.spec(dedup="greedy", **changes)
    if not refused:
        prepare(spec)
        return
    with pytest.raises(ConfigError, match="temperature") as told:
        prepare(spec)
    assert "--dedup always" in str(told.value.hint)
