"""Jobs over a real Ray cluster of several nodes: the same checkpoint, retries and results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from domyn_swarm.errors import ConfigError, InvalidInput, JobError
from domyn_swarm.jobs import ChatCompletionJob
from model_server import KEY, Answer, ModelServer
from patience import limit_s, until
from ray_fixtures import RayCluster

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, of its own settings
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def asked(server: ModelServer, ray_cluster: RayCluster) -> Callable[..., Any]:
    def run(data: Any, /, *, options: dict[str, Any] | None = None, **settings: Any) -> Any:
        chosen = {"input_columns": ["prompt"], "output_columns": ["answer"], **(options or {})}
        one = ChatCompletionJob(**chosen)
        settings = {"progress": False, **settings}
        return one.run(data, endpoint=server.url, model="m", api_key=KEY, **settings)

    return run


def dataset(rows: int, blocks: int = 4) -> Any:
    import ray.data

    columns = {"n": list(range(rows)), "prompt": [f"p{n}" for n in range(rows)]}
    table = pa.table(columns)
    size = max(1, -(-rows // blocks))
    return ray.data.from_arrow([table.slice(at, size) for at in range(0, max(rows, 1), size)])


def expected(rows: int) -> list[dict[str, Any]]:
    return [{"n": n, "prompt": f"p{n}", "answer": f"P{n}"} for n in range(rows)]


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_a_dataset_comes_back_as_one_in_order(
    asked: Callable[..., Any], server: ModelServer, rows: int
) -> None:
    import ray.data

    out = asked(dataset(rows))
    assert isinstance(out, ray.data.Dataset)
    assert out.take_all() == expected(rows)
    assert asked(dataset(rows, blocks=3)).take_all() == expected(rows)
    assert sum(server.asked.values()) == rows


def test_blocks_that_lost_all_their_rows_are_left_out(asked: Callable[..., Any]) -> None:
    """As a filter leaves them: without columns too."""

    def odd(row: dict[str, Any]) -> list[dict[str, Any]]:
        return [row] if row["n"] // 10 % 2 else []

    assert asked(dataset(40, blocks=4).flat_map(odd)).take_all() == [
        row for row in expected(40) if odd(row)
    ]


@pytest.mark.filterwarnings("ignore:Use 'expr'")
@pytest.mark.parametrize(
    ("emptied", "columns"),
    [
        (lambda rows: rows.filter(lambda _: False), ["n", "prompt"]),
        (lambda rows: rows.limit(0), ["n", "prompt"]),
        (lambda rows: rows.flat_map(lambda _: []), ["prompt", "id"]),  # forgotten: what is read
    ],
)
def test_a_dataset_may_have_lost_all_its_rows(
    asked: Callable[..., Any], server: ModelServer, emptied: Any, columns: list[str]
) -> None:
    out = asked(emptied(dataset(40)), options={"id_column": "id"} if "id" in columns else {})
    assert (out.count(), server.asked) == (0, {})
    assert out.schema().names == [*columns, "answer"]


def test_results_lie_on_the_nodes(asked: Callable[..., Any]) -> None:
    out = asked(dataset(200, blocks=4))
    assert len(out.to_arrow_refs()) == 4


def test_another_library_goes_on_with_what_it_began(
    asked: Callable[..., Any], server: ModelServer
) -> None:
    asked(dataset(100))
    table = pa.table({"n": range(150), "prompt": [f"p{n}" for n in range(150)]})
    assert asked(table).to_pylist() == expected(150)
    assert asked(dataset(200)).take_all() == expected(200)
    assert set(server.asked.values()) == {1}


def test_the_concurrency_is_that_of_all_actors_together(
    asked: Callable[..., Any], server: ModelServer
) -> None:
    server.behave = lambda _prompt, _nth: Answer(delay_s=0.02)
    progress: list[int] = []
    asked(
        dataset(200),
        options={"max_concurrency": 6},
        on_progress=lambda done, _total: progress.append(done),
    )
    assert 2 <= server.most_at_once <= 6
    assert progress[-1] == 200


def test_failed_rows_say_why_and_are_asked_again(
    asked: Callable[..., Any], server: ModelServer
) -> None:
    server.behave = lambda prompt, _: Answer(status=400 if prompt == "p150" else 200)
    rows = asked(dataset(200)).take_all()
    assert [row["n"] for row in rows if row["_error"]] == [150]
    server.behave = lambda _prompt, _nth: Answer()
    assert asked(dataset(200), retry_failed=True).take_all() == expected(200)
    assert sum(server.asked.values()) == 201


def test_a_node_that_dies_costs_what_was_in_flight(
    asked: Callable[..., Any],
    server: ModelServer,
    ray_cluster: RayCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its rows lay on the nodes, in blocks that are made again; nobody has room for its worker."""
    import ray.data

    from domyn_swarm.jobs.ray import workers

    server.behave = lambda _prompt, _nth: Answer(delay_s=0.05)
    server.answers_at_most = 150
    ray_cluster.add_node()
    rows = ray.data.range(900, override_num_blocks=9).map_batches(
        lambda table: table.rename_columns(["n"]).append_column(
            "prompt", pa.array([f"p{n}" for n in table.column(0).to_pylist()])
        ),
        batch_format="pyarrow",
    )
    killed = threading.Event()

    def kill() -> None:
        try:
            until(lambda: server.answered.total() == 150)
            monkeypatch.setattr(workers, "_START_S", 1.0)  # the others go on meanwhile
            ray_cluster.kill_node()
            killed.set()
        finally:
            server.answers_at_most = None

    killer = threading.Thread(target=kill)
    killer.start()
    out = asked(rows, options={"max_concurrency": 12})
    killer.join()
    assert killed.is_set()
    assert out.take_all() == expected(900)
    twice = sum(times - 1 for times in server.asked.values())
    assert twice <= 12


def test_without_a_checkpoint_nothing_is_left(asked: Callable[..., Any], swarm_home: Path) -> None:
    assert asked(dataset(10), checkpoint=False).take_all() == expected(10)
    assert not [path for path in swarm_home.rglob("*") if path.is_file()]


def test_no_key_is_left_behind(asked: Callable[..., Any], swarm_home: Path) -> None:
    asked(dataset(10))
    files = [path for path in swarm_home.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_what_cannot_be_is_refused_before_the_first_request(
    asked: Callable[..., Any], server: ModelServer
) -> None:
    import ray.data

    with pytest.raises(InvalidInput, match="'prompt'"):
        asked(ray.data.from_items([{"text": "a"}]))
    with pytest.raises(ConfigError, match="on_batch"):
        asked(dataset(3), on_batch=print)
    with pytest.raises(InvalidInput, match="row 0"):
        asked(
            ray.data.from_items([{"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}]),
            options={"id_column": "id"},
        )
    assert not server.asked


def test_a_cluster_without_room_says_so(
    asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, ray_cluster: RayCluster
) -> None:
    import ray

    from domyn_swarm.errors import PlatformError
    from domyn_swarm.jobs.ray import workers

    monkeypatch.setattr(workers, "_START_S", 3.0)
    rows = dataset(10).materialize()
    room_s = limit_s()  # until there is room again: longer than the wait for it
    hog = ray.remote(num_cpus=1)(lambda: time.sleep(room_s))
    hogs = [hog.remote() for _ in range(2 * len(ray_cluster.nodes))]
    try:
        until(lambda: not ray.available_resources().get("CPU", 0))
        with pytest.raises((PlatformError, JobError), match="no room"):
            asked(rows)
    finally:
        for one in hogs:
            ray.cancel(one, force=True)
