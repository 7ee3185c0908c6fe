"""The page about a job that had it all, in a real browser: failures, a kill, a lost replica."""

from __future__ import annotations

import json
import re
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from browser import browse, needs_chromium
from command_line import CommandLine, rows_done, worker_of, write_job
from patience import scaled, until
from pictures import is_on_the_site

pytestmark = needs_chromium

CONFIG = """
name: eventful
model: sim-model
engine: sim
replicas: 2
min_ready: 2
backend: local
engine_options:
  latency_s: {latency_s}
  slots: 8
  errors:
    - {{match: "[05]$", status: 400}}
    - {{match: "1$", status: 500, times: 1}}
    - {{match: "number [234][0-9][0-9]$", held_by: {folder}/from-200}}
    - {{match: "number [5-8][0-9][0-9]$", held_by: {folder}/from-500}}
watchdog: {{probe_interval: 1, restart_backoff_initial: 0.1}}
"""


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The report, as `--json` prints it, of a job that was killed and lost a replica."""
    folder = tmp_path_factory.mktemp("eventful")
    cli = CommandLine(folder / "home")
    (folder / "eventful.yaml").write_text(CONFIG.format(latency_s=scaled(0.1), folder=folder))
    holds = [folder / f"from-{row}" for row in (200, 500)]  # else it might end before it is killed
    for hold in holds:
        hold.touch()
    try:
        cli.ok("up", "-c", folder / "eventful.yaml")
        job = write_job(folder, "eventful", 900)
        submission = job.submission("--name", "eventful", "--max-concurrency", "8", "-d")
        handle = json.loads(cli.ok(*submission))
        until(lambda: rows_done(handle) >= 80)
        _kill_replica(cli, 1)
        until(lambda: _routed(cli) == 1)
        done = rows_done(handle)
        holds[0].unlink()
        until(lambda: rows_done(handle) >= done + 40)
        worker_of(handle).send_signal(signal.SIGKILL)
        holds[1].unlink()
        assert cli("job", "wait", handle["job_id"]).returncode == 6
        assert cli("job", "resume", handle["job_id"], "--no-progress").returncode == 7
        last = cli.json("job", "list")["jobs"][0]
        yield cli.json("job", "report", last["job_id"], "--output", folder / "page.html")
    finally:
        cli.clean_up()


def _report(cli: CommandLine, replica: int) -> dict[str, Any]:
    view = json.loads((cli.home / "swarms/eventful/serving/replicas.json").read_text())
    [found] = [one for one in view["replicas"] if one["replica"] == replica]
    return dict(found)


def _routed(cli: CommandLine) -> int:
    """How many replicas the router may use."""
    return len(
        json.loads((cli.home / "swarms/eventful/serving/router.json").read_text())["workers"]
    )


def _kill_replica(cli: CommandLine, replica: int) -> None:
    """The whole node, as it were: engine and watchdog."""
    found = _report(cli, replica)
    for pid in (found["watchdog_pid"], found["engine_pid"]):
        psutil.Process(pid).kill()


def test_the_report_tells_what_happened(reported: dict[str, Any]) -> None:
    first, second = reported["runs"]
    assert (first["ended"], second["ended"]) == (False, True)
    assert 0 < first["lost_in_flight"] <= 8
    assert first["job_id"] != second["job_id"]
    assert 160 < reported["account"]["rows_failed"] <= 180  # a second of the killed run is missing
    assert [(one["rows"], one["status"]) for one in reported["failures"]] == [(180, 400)]
    causes = {one["cause"]: one["requests"] for one in reported["redone"]}
    assert causes["in flight when a run was killed"] == first["lost_in_flight"]
    assert causes["after an error"] > 0
    lost = [one for one in reported["events"] if one["replica"] == 1]
    assert "unhealthy" in [one["state"] for one in lost]
    shares = {one["replica"]: one["answers"] for one in reported["shares"]}
    assert 0 < shares[1] < shares[0]  # it was there for the first of the rows
    # The answers of a killed run's last second are in no account
    assert sum(shares.values()) == pytest.approx(720, abs=90)
    assert reported["gpu_hours"] == 0
    assert reported["replica_hours"] > 0


def test_a_browser_shows_all_of_it_and_asks_nobody(
    reported: dict[str, Any], tmp_path: Path
) -> None:
    dom = browse("--dump-dom", page=reported["path"], profile=tmp_path / "profile")
    text = " ".join(re.sub(r"<[^>]+>", " ", dom).split())
    for words in (
        *("Throughput", "Concurrency", "Latency of requests", "Failures", "Slowest rows"),
        *("HTTP 400: simulated error", "killed, run 2", "in flight when a run was killed"),
        *("no requests go there", "replica 1 unhealthy", "replica-hours"),
    ):
        assert words in text
    assert dom.count("<svg") == 6  # of the last, a band for each replica
    assert not re.search(r'(?:src|href|url)\s*[=(]\s*["\']?(?!#)\S', dom)
    assert "default-src 'none'" in dom


def test_the_report_on_the_site_is_what_reports_are(reported: dict[str, Any]) -> None:
    path = Path(reported["path"])
    page = path.read_text(encoding="utf-8").replace(str(path.parent), "/home/me")
    is_on_the_site("report", page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark(
    reported: dict[str, Any], scheme: str, tmp_path: Path
) -> None:
    picture = tmp_path / "page.png"
    browse(
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--window-size=900,700",
        f"--screenshot={picture}",
        page=reported["path"],
        profile=tmp_path / "profile",
    )
    shades = brightness(picture)
    paper, ink = shades[0], (max(shades) if scheme == "dark" else min(shades))
    assert (paper < 60) == (scheme == "dark")
    assert abs(paper - ink) > 150  # there is something, and it stands out


def brightness(picture: Path) -> list[int]:
    """Of every pixel, 0 to 255: a PNG as Chromium writes it, 8 bits RGB or RGBA."""
    content = picture.read_bytes()
    at, packed, header = 8, b"", b""
    while at < len(content):
        (size,), kind = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        body = content[at + 8 : at + 8 + size]
        header = body if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        at += size + 12
    width, height, depth, colours = struct.unpack(">IIBB", header[:10])
    assert depth == 8
    step = {2: 3, 6: 4}[colours]
    raw, stride = zlib.decompress(packed), width * step
    before, shades = bytearray(stride), []
    for row in range(height):
        begin = row * (stride + 1)
        line = bytearray(raw[begin + 1 : begin + 1 + stride])
        _unfilter(raw[begin], line, before, step)
        shades += [sum(line[x : x + 3]) // 3 for x in range(0, stride, step * 4)]
        before = line
    return shades


def _unfilter(kind: int, line: bytearray, before: bytearray, step: int) -> None:
    for x in range(len(line)):
        left = line[x - step] if x >= step else 0
        up, corner = before[x], before[x - step] if x >= step else 0
        if kind == 4:
            guess = left + up - corner
            ranked = sorted((left, up, corner), key=lambda one: abs(guess - one))
            line[x] = (line[x] + ranked[0]) & 255
        else:
            line[x] = (line[x] + (0, left, up, (left + up) // 2)[kind]) & 255
