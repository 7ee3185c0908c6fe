"""A checkpoint that one library of frames began is gone on with by every other, and back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from domyn_swarm.data.arrow_backend import ArrowBackend
from domyn_swarm.data.data_backend import DataBackend
from domyn_swarm.data.pandas_backend import PandasBackend
from domyn_swarm.data.polars_backend import LazyPolarsBackend, PolarsBackend
from domyn_swarm.data.ray_backend import RayBackend
from domyn_swarm.data.registry import backend_of
from domyn_swarm.jobs import TemplateJob
from model_server import KEY, ModelServer
from ray_fixtures import RayCluster

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, of its own settings
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
BACKENDS: dict[str, DataBackend[Any]] = {
    "arrow": ArrowBackend(),
    "pandas": PandasBackend(),
    "polars": PolarsBackend(),
    "polars-lazy": LazyPolarsBackend(),
    "ray": RayBackend(),
}
STEP = 7
ROME = ZoneInfo("Europe/Rome")


PROMPT = "{{ prompt }}{% if at or price or kind or deep or maybe or nanos %}{% endif %}"
shout = TemplateJob(prompt=PROMPT, output_columns=["answer"])  # which reads all of them


def table(rows: int) -> pa.Table:
    """Inputs of the types in which libraries differ most."""
    deep = pa.list_(pa.struct([("word", pa.string()), ("scores", pa.list_(pa.float64()))]))
    numbers = range(rows)
    return pa.table(
        {
            "prompt": pa.array([f"p{n}" for n in numbers], pa.large_string()),
            "at": pa.array(
                [dt.datetime(2026, 3, 29, n % 24, tzinfo=ROME) for n in numbers],
                pa.timestamp("us", "Europe/Rome"),
            ),
            "price": pa.array([Decimal(n) / 4 for n in numbers], pa.decimal128(38, 2)),
            "kind": pa.array([f"k{n % 3}" for n in numbers]).dictionary_encode(),
            "deep": pa.array(
                [[{"word": None, "scores": [n / 3]}] * (n % 3) for n in numbers], deep
            ),
            "maybe": pa.array([n if n % 2 else None for n in numbers], pa.int64()),
            "nanos": pa.array([1000 * n + n % 2 for n in numbers], pa.timestamp("ns")),
        }
    )


def every_pair(names: list[str]) -> list[str]:
    """A walk in which every one follows every other once (Hierholzer)."""
    ahead = {name: [other for other in names if other != name] for name in names}
    path, walk = [names[0]], []
    while path:
        if ahead[path[-1]]:
            path.append(ahead[path[-1]].pop())
        else:
            walk.append(path.pop())
    return walk


def rows_of(frame: Any) -> Iterator[dict[str, Any]]:
    backend = backend_of(frame)
    read = pa.Table.from_batches(backend.batches(frame), backend.schema(frame))
    return iter(read.select(["prompt", "answer"]).to_pylist())


@pytest.fixture
def asked(server: ModelServer, ray_cluster: RayCluster) -> Callable[[Any], Any]:
    def run(frame: Any) -> Any:
        return shout.run(frame, endpoint=server.url, model="m", api_key=KEY, progress=False)

    return run


def test_the_walk_is_one_of_every_pair() -> None:
    walk = every_pair(list(BACKENDS))
    assert len(set(pairwise(walk))) == len(walk) - 1 == 20


def test_every_library_goes_on_with_what_every_other_began(
    asked: Callable[[Any], Any], server: ModelServer
) -> None:
    for rows, name in enumerate(every_pair(list(BACKENDS)), 1):
        given = table(STEP * rows)
        frame = BACKENDS[name].build(given.schema, given.to_batches())
        found = asked(frame)
        assert type(found) is type(frame)
        expected = [{"prompt": f"p{n}", "answer": f"P{n}"} for n in range(STEP * rows)]
        assert list(rows_of(found)) == expected, name
        assert len(server.asked) == STEP * rows, name
        assert set(server.asked.values()) == {1}, name
