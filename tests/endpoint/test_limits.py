"""What router and endpoint program do with few open files."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from domyn_swarm.backends.endpoint.endpoint_program import within_limits
from domyn_swarm.backends.endpoint.reachability import Reachability
from domyn_swarm.backends.endpoint.router import Admission, admission, files_needed
from domyn_swarm.paths import write_private
from endpoint.bench import Bench
from endpoint.test_endpoint import ask
from open_file_limits import highest, no_files_left, soft_limit
from patience import until


@pytest.mark.parametrize(
    ("wanted", "files", "replicas", "taken"),
    [
        (Admission(8192, 8192), 65_536, 8, Admission(8192, 8192)),
        (Admission(8192, 8192), 24_656, 8, Admission(8192, 8192)),  # just enough
        (Admission(8192, 8192), 24_655, 8, Admission(8191, 8192)),
        (Admission(8192, 0), 16_464, 8, Admission(8192, 0)),
        (Admission(8192, 8192), 1024, 2, Admission(318, 320)),
        (Admission(100, 8192), 1024, 2, Admission(100, 756)),
        (Admission(8192, 8192), 100, 1000, Admission(1, 1)),  # too few for anything
    ],
)
def test_a_router_is_given_what_it_has_files_for(
    wanted: Admission, files: int, replicas: int, taken: Admission
) -> None:
    assert admission(wanted, files, replicas) == taken
    enough = files_needed(wanted, replicas)
    assert admission(wanted, enough, replicas) == wanted
    assert admission(wanted, enough - 1, replicas) != wanted


def test_what_a_node_cannot_do_is_said_once_and_told_to_jobs(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    spec = bench.endpoint_spec(max_concurrent=10**6, queue_size=10)
    fitted = within_limits(spec)
    assert fitted.max_concurrent < 10**6
    [warning] = caplog.messages
    assert f"takes {fitted.max_concurrent} requests at once" in warning
    caplog.clear()
    assert within_limits(bench.endpoint_spec(max_concurrent=100, queue_size=10)) == (
        bench.endpoint_spec(max_concurrent=100, queue_size=10)
    )
    assert caplog.messages == []


async def test_a_process_without_files_takes_no_replica_out(bench: Bench) -> None:
    looks = Reachability()
    here = "http://127.0.0.1:9"  # nobody listens
    with no_files_left():
        for _ in range(3):
            assert not await looks.check([here])
    assert looks.reachable(here)
    for _ in range(2):
        changed = await looks.check([here])
    assert changed
    assert not looks.reachable(here)
    with no_files_left():  # nor is one taken for one that is back
        assert not await looks.check([here])
    assert not looks.reachable(here)


async def test_a_look_at_many_replicas_needs_few_files() -> None:
    looks = Reachability()
    urls = [f"http://127.0.{number // 250}.{number % 250 + 1}:9" for number in range(1000)]
    with soft_limit(highest() + 280):
        await looks.check(urls)
        await looks.check(urls)
    assert not any(looks.reachable(url) for url in urls)


def start_endpoint(bench: Bench, soft: int, hard: int) -> subprocess.Popen[bytes]:
    write_private(bench.paths.endpoint_spec, bench.endpoint_spec().model_dump_json())
    program = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$0" "$@"'
    argv = ["/bin/sh", "-c", program, sys.executable, "-m", "domyn_swarm.backends.endpoint"]
    with (bench.scratch / "endpoint.log").open("ab") as output:
        bench.programs.append(
            subprocess.Popen([*argv, str(bench.paths.root)], stdout=output, stderr=output)
        )
    return bench.programs[-1]


def router_of(endpoint: subprocess.Popen[bytes]) -> psutil.Process:
    [router] = until(lambda: psutil.Process(endpoint.pid).children())
    return router


def test_requests_beyond_what_a_small_router_takes_are_turned_away_and_none_is_lost(
    bench: Bench,
) -> None:
    endpoint = start_endpoint(bench, soft=150, hard=250)
    address = bench.address()
    assert address.open_files == (250, 250)
    replica = bench.replica().start()
    bench.until_state("ready")
    until(lambda: ask(address.url, "hello")[0] == 200)
    assert router_of(endpoint).rlimit(psutil.RLIMIT_NOFILE) == (250, 250)
    assert address.admits is not None
    starts = list(replica.starts)  # another program may have taken the first one's port
    with ThreadPoolExecutor(address.admits) as pool:
        answers = Counter(
            status
            for status, _ in pool.map(
                lambda nth: ask(address.url, f"slow:0.3:{nth}"), range(address.admits)
            )
        )
    assert answers == {200: address.admits}
    assert replica.starts == starts
    states = [one.state for one in bench.view().replicas]
    assert states == ["ready"]
    log = (bench.scratch / "endpoint.log").read_text()
    assert log.count("too few for router.max_concurrent") == 1
