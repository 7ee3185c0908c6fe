"""Where the endpoint program tells Prometheus to scrape, and what it leaves for node_exporter."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.router import SmgRouter
from domyn_swarm.backends.endpoint.scraping import SwarmMetrics
from domyn_swarm.backends.endpoint.supervision import RouterFigures
from domyn_swarm.backends.endpoint.use_meter import JobsFolder
from domyn_swarm.model import JobProgress, utc_now
from domyn_swarm.paths import JobPaths, write_private, write_private_once
from endpoint.bench import Bench
from patience import limit_s, until
from virtual_time import in_virtual_time


def scrape(url: str, key: str) -> str:
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=limit_s()) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(reply.read().decode())


def test_targets_and_textfile_come_and_go_with_the_endpoint(bench: Bench) -> None:
    shared = bench.scratch / "shared"
    shared.mkdir()
    write_private(bench.paths.metrics_key, "the-scrapers-key")
    endpoint = bench.start_endpoint(
        textfile_dir=str(shared),
        discovery_dir=str(shared),
        metrics_key_file=bench.paths.metrics_key,
        model="m",
    )
    address = bench.address()
    # By their names: while one is written, another of its kind lies beside it.
    until(lambda: {one.suffix for one in shared.iterdir()} == {".json", ".prom"})
    [targets] = shared.glob("*.json")
    [textfile] = shared.glob("*.prom")
    [group] = json.loads(targets.read_text())
    assert group["targets"] == [address.collector_url.removeprefix("http://")]
    assert group["labels"] == {"swarm": "swarm"}
    assert {one.stat().st_mode & 0o777 for one in (targets, textfile)} == {0o644}
    assert 'domyn_swarm_replicas_wanted{swarm="swarm"} 3.0' in textfile.read_text()
    assert 'model="m"' in scrape(address.collector_url, "the-scrapers-key")

    write_private(bench.paths.metrics_key, "another-key")  # changed while it runs
    assert scrape(address.collector_url, "another-key")
    bench.paths.metrics_key.unlink()
    for key in ("another-key", ""):
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            scrape(address.collector_url, key)
        refused.value.close()

    endpoint.terminate()
    assert endpoint.wait(limit_s()) == 0
    assert list(shared.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_end_the_endpoint(bench: Bench) -> None:
    bench.start_endpoint(textfile_dir="/nowhere", discovery_dir="/nowhere")
    bench.address()
    log = bench.scratch / "endpoint.log"
    until(lambda: log.read_text().count("cannot write /nowhere") >= 2)
    assert bench.programs[0].poll() is None


def test_of_several_writers_of_a_key_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "key"
    threads = [
        threading.Thread(target=write_private_once, args=(path, str(number))) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chosen = path.read_text()
    assert chosen in map(str, range(8))
    write_private_once(path, "late")
    assert path.read_text() == chosen
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["key"]


def test_jobs_are_told_until_a_quarter_of_an_hour_after_their_last_word(tmp_path: Path) -> None:
    def write(name: str, **fields: Any) -> None:
        progress = JobProgress(**{"updated_at": utc_now(), **fields})
        write_private(JobPaths(tmp_path / name).progress, progress.model_dump_json())

    long_ago = utc_now().replace(year=2020)
    write("1", state="ended", updated_at=long_ago)
    write("2", state="running", updated_at=long_ago)  # killed long ago
    write("3", state="ended")
    write("4", state="running")
    write_private(JobPaths(tmp_path / "5").progress, "of another version")
    (tmp_path / "6").mkdir()
    folder = JobsFolder(tmp_path)
    assert [job.job_id for job in folder.read(utc_now())] == ["3", "4"]
    write("1", state="running")  # nobody goes on with a job that has ended
    write("2", state="running")
    assert [job.job_id for job in folder.read(utc_now())] == ["2", "3", "4"]
    assert JobsFolder(tmp_path / "none").read(utc_now()) == []


@in_virtual_time
async def test_metrics_that_cannot_be_had_do_not_end_the_endpoint(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> RouterFigures | None:
        raise KeyError("worker")

    spec = bench.endpoint_spec()
    collector = Collector(spec, bench.paths, SmgRouter().manifest, settle_s=1.0)
    metrics = SwarmMetrics(spec, bench.paths, collector, broken)
    writing = asyncio.create_task(metrics.keep_textfile(bench.scratch))
    await asyncio.sleep(60)
    assert not writing.done()
    assert caplog.text.count("there are no metrics") > 1
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await collector.close()
