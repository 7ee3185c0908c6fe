"""The dashboard as one who looks at it sees it: the installed command, and Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from acceptance.conftest import Standing
from browser import browser, needs_chromium
from command_line import CommandLine, rows_done
from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.cli.top.cells import job_row, replica_row, summary
from domyn_swarm.model import (
    JobProgress,
    JobStatus,
    Location,
    ReplicaReport,
    ReplicaState,
    SwarmPhase,
    utc_now,
)
from domyn_swarm.paths import JobPaths, SwarmPaths, write_private
from domyn_swarm.state import JobRecord, SwarmStore
from domyn_swarm.swarm.snapshot import JobSnapshot, SwarmSnapshot
from patience import limit_s, until
from pictures import is_on_the_site
from swarm.test_pruning import recorded

EVIL = "<img src=x onerror=alert(1)>&amp;\"'"
CELLS = (
    "[...document.querySelectorAll('{} tbody tr')]"
    ".map(row => [...row.cells].map(one => one.textContent))"
)

STILL = """(() => {
    const page = document.documentElement.cloneNode(true);
    page.querySelectorAll("script, noscript, link").forEach((one) => one.remove());
    page.querySelectorAll("a").forEach((one) => one.removeAttribute("href"));
    const rules = [...document.styleSheets].flatMap((one) => [...one.cssRules]);
    const style = page.querySelector("head").appendChild(document.createElement("style"));
    style.textContent = rules.map((one) => one.cssText).join("\\n");
    return "<!doctype html>\\n" + page.outerHTML + "\\n";
})()"""


@dataclass(frozen=True)
class Shown:
    """A dashboard that runs."""

    process: subprocess.Popen[str]
    url: str

    def page(self, path: str) -> str:
        """The URL of another page of it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{path}?{parts.query}"

    def api(self, path: str) -> Any:
        """What a program is answered."""
        [token] = parse_qs(urlsplit(self.url).query)["token"]
        request = urllib.request.Request(
            self.page(path).partition("?")[0], headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=limit_s()) as reply:
            return json.load(reply)


@contextlib.contextmanager
def dashboard(cli: CommandLine, *args: object) -> Iterator[Shown]:
    """Start one; it is ended with Ctrl-C unless it has ended by then."""
    process = cli.start("dashboard", *args)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), process.communicate()
        yield Shown(process, url)
    finally:
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=limit_s())
    assert process.returncode in (130, -signal.SIGKILL), said
    assert rest == ""  # stdout has the URL alone
    assert "Traceback" not in said


@needs_chromium
async def test_it_shows_what_status_tells(standing: Standing, tmp_path: Path) -> None:
    cli, job = standing.cli, standing.job("held for the dashboard", 30)
    with standing.sim.held(), dashboard(cli, "demo", "--no-open", "--every", "0.5") as shown:
        submission = job.submission("--name", "demo", "--max-concurrency", "4", "-d")
        handle = json.loads(cli.ok(*submission))
        job_id = handle["job_id"]
        until(lambda: rows_done(handle) >= 10)
        async with browser(tmp_path / "profile") as tab:
            await tab.open(shown.url)
            await tab.until("document.getElementById('before').textContent.includes('10/30')")
            assert "token" not in await tab.asks("location.href + document.referrer")
            told = cli.json("status", "demo")
            seen = SwarmSnapshot.model_validate(shown.api("/api/swarms/demo"))
            assert (seen.name, seen.observed, seen.replicas_ready) == ("demo", "ready", 2)
            assert told["replicas_wanted"] == seen.replicas_wanted

            # What holds still is the same on the page, in the API, in `status` and in `top`
            [of_page] = [
                cells for cells in await tab.asks(CELLS.format("#before")) if cells[-1] == job_id
            ]
            [of_api] = [one for one in seen.jobs if one.job_id == job_id]
            [of_status] = [one for one in told["jobs"] if one["job_id"] == job_id]
            still = (0, 1, 2, 3, 7)  # the others are rates and sums of a job at work
            assert [of_page[at] for at in still] == [job_row(of_api)[at] for at in still]
            assert (of_status["rows_done"], of_status["rows_total"]) == (10, 30)
            replicas = await tab.asks(CELLS.format("#after"))
            assert [cells[:2] for cells in replicas] == [["0", "ready"], ["1", "ready"]]
            assert [cells[-1] for cells in replicas] == [
                replica_row(one)[-1] for one in seen.replicas
            ]
            assert summary(seen, utc_now())[0] in await tab.asks("document.body.textContent")
            figure = await tab.asks("document.querySelector('#charts figure').textContent")
            assert "Replicas over time" in figure
            is_on_the_site("dashboard", await tab.asks(STILL))

            # The job, and its report
            await tab.asks(f"document.querySelector('a[href=\"/jobs/{job_id}\"]').click()")
            await tab.until("document.getElementById('after').textContent.includes('No row')")
            assert await tab.asks("document.querySelectorAll('#charts svg').length") >= 1
            await tab.asks("document.querySelector('a[href^=\"/reports/\"]').click()")
            await tab.until("document.body.textContent.includes('Slowest rows')")
            assert tab.complaints == []
            assert JobSnapshot.model_validate(shown.api(f"/api/jobs/{job_id}")).rows_done == 10
    assert cli("job", "wait", job_id, "--no-progress").returncode == 0


def far_home(home: Path) -> None:
    """A swarm of a thousand replicas on another host, with sixty jobs of nasty names."""
    far = Location(kind="host", name="far", boot_id="b", pid_namespace=1, machine_id="far's")
    root = recorded(home, "wide", SwarmPhase.READY, replicas=1000, location=far, model=EVIL)
    reports = tuple(
        ReplicaReport(
            replica=index,
            state=ReplicaState.READY if index % 10 else ReplicaState.FAILED,
            reason=None if index % 10 else EVIL,
            requests_running=3.0,
            requests_waiting=1.0,
            sample_age_s=0.5,
            node=f"node-{index}",
            incarnation="a",
            sequence=1,
            reported_at=utc_now(),
        )
        for index in range(1000)
    )
    store = SwarmStore.open()
    view = CollectorView(
        replicas=reports, taken_at=utc_now(), stale_after_s=15, tag=store.swarm("wide").tag
    )
    write_private(SwarmPaths(root).replicas, view.model_dump_json())
    for number in range(60):
        paths: JobPaths = SwarmPaths(root).job(f"job-{number:02}")
        progress = JobProgress(
            state="running", rows_total=100, rows_done=number, rows_failed=1, updated_at=utc_now()
        )
        write_private(paths.progress, progress.model_dump_json())
        store.create_job(
            JobRecord(
                job_id=f"job-{number:02}",
                name=f"{EVIL} {'long ' * 100}",
                swarm="wide",
                platform="local",
                status=JobStatus.RUNNING,
                location=far,
                job_dir=str(paths.root),
                input="i",
                output="o",
                submitted_at=utc_now(),
            )
        )


@needs_chromium
async def test_a_large_home_of_another_host_and_the_end_of_the_dashboard(
    cli: CommandLine, swarm_home: Path, tmp_path: Path
) -> None:
    far_home(swarm_home)
    async with browser(tmp_path / "profile") as tab:
        with dashboard(cli, "wide", "--no-open") as shown:
            port = urlsplit(shown.url).port
            await tab.open(shown.url)
            await tab.until("document.querySelectorAll('#before tbody tr').length > 1000")
            text = await tab.text()
            assert "host far: not asked from here, known 0:0" in text
            assert f"{EVIL} (sim on local" in text
            assert "and 10 older ones" in text
            assert "900 ready, 100 failed" in text
            jobs = await tab.asks(CELLS.format("#before section:nth-child(1)"))
            replicas = await tab.asks(CELLS.format("#before section:nth-child(2)"))
            assert [cells[2] for cells in jobs] == [f"{59 - at}/100" for at in range(50)]
            assert [cells[:4] for cells in replicas[9:11]] == [
                ["9", "ready", "3", "1"],
                ["10", "failed", "3", "1"],
            ]
            wide = "document.documentElement.scrollWidth <= window.innerWidth"
            assert await tab.asks(wide)
            await tab.open(shown.page("/"))
            await tab.until("document.querySelectorAll('#before tbody tr').length === 51")
            assert "900/1000" in await tab.text()
            assert (await tab.asks("document.images.length"), tab.complaints) == (0, [])

            shown.process.kill()  # without a word
            await tab.until("!document.getElementById('problem').hidden")
            assert "the dashboard has ended" in await tab.text()
            assert "What is shown was known at" in await tab.text()
        with dashboard(cli, "--no-open", "--port", port):
            await tab.until("document.body.innerText.includes('Open the URL that the new one')")
            taken = cli("dashboard", "--no-open", "--port", port)
            assert (taken.returncode, taken.stdout) == (2, "")
            assert f"Cannot listen on '127.0.0.1', port {port}" in taken.stderr
    cli.ok("down", "wide", "--forget", "-y")


@needs_chromium
async def test_a_browser_is_opened_without_the_token_among_its_arguments(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, program = tmp_path / "opened", tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {opened}.new && mv {opened}.new {opened}\n')
    program.chmod(0o700)
    monkeypatch.setenv("BROWSER", f"{program} %s")
    with dashboard(cli, "--open") as shown:
        until(opened.exists)
        place = opened.read_text().strip()
        assert place.startswith("file:///")
        file = urlsplit(place).path
        assert os.stat(file).st_mode & 0o777 == 0o600  # noqa: PTH116
        async with browser(tmp_path / "profile") as tab:  # from there it is a link of another site
            await tab.open(place)
            await tab.until("document.body.innerText.includes('No swarm is live')")
            assert "token" not in await tab.asks("location.href")
        assert shown.process.poll() is None
    assert not list(cli.home.glob("dashboard-*"))


def test_what_it_is_asked_for_must_be_there(cli: CommandLine) -> None:
    unknown = cli("dashboard", "nobody", "--no-open")
    assert (unknown.returncode, unknown.stdout) == (3, "")
    assert "There is no swarm named 'nobody'" in unknown.stderr
    for host in ("192.0.2.1", "no.such.host.invalid", "x" * 70, ""):
        refused = cli("dashboard", "--no-open", "--host", host)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"Cannot listen on {host!r}" in refused.stderr
    for every in ("0.1", "nan", "inf"):
        assert cli("dashboard", "--no-open", "--every", every).returncode == 2
    with dashboard(cli, "--no-open", "--host", "0.0.0.0") as shown:
        assert urlsplit(shown.url).hostname not in ("0.0.0.0", "127.0.0.1")
        local = Shown(
            shown.process, shown.url.replace(str(urlsplit(shown.url).hostname), "localhost")
        )
        assert "not encrypted" in local.api("/pages/")["notice"]
