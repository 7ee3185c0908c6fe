"""A real Prometheus scrapes a live swarm: dashboards and alerts are asked of what it has stored."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from clients import HELLO, post
from command_line import CommandLine, write_job
from domyn_swarm.model import ReplyVerdict
from patience import limit_s, until

DEPLOY = Path(__file__).parents[2] / "deploy" / "grafana"

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="Prometheus is not installed: `make monitoring-packages` where there is apt",
)


def test_the_alert_rules_are_valid_and_fire_when_they_should() -> None:
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=DEPLOY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    fired = {
        case["alertname"] for one in tests for case in one["alert_rule_test"] if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules}


@dataclass(frozen=True)
class Monitored:
    """A swarm with a job that runs, and the Prometheus that scrapes it."""

    cli: CommandLine
    url: str  # of Prometheus
    textfile: Path
    job: dict[str, Any]

    def ask(self, path: str, **query: str) -> Any:
        """Prometheus' API."""
        where = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(where, timeout=limit_s()) as reply:
            document = json.load(reply)
        assert document["status"] == "success"
        return document["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The value of an expression now, for each set of labels."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    @property
    def endpoint(self) -> dict[str, Any]:
        found: dict[str, Any] = self.cli.json("endpoint", "watched")
        return found


CONFIG = """
name: watched
model: sim-model
engine: sim
replicas: 2
backend: local
engine_options:
  latency_s: 0.1
  slots: 8
  errors:
    - {{match: "[05]$", status: 400}}
    - {{match: "1$", status: 500, times: 1}}
    - {{match: "2$", status: 429, retry_after_s: 0.1, times: 1}}
watchdog: {{probe_interval: 1, restart_backoff_initial: 0.1}}
metrics: {{textfile_dir: {textfile}}}
"""


def prometheus_config(cli: CommandLine, folder: Path) -> str:
    """What we tell users to configure, with seconds where they would have minutes."""
    config = yaml.safe_load(cli.ok("endpoint", "watched", "--scrape"))
    for scraped in config["scrape_configs"]:
        for one in scraped["file_sd_configs"]:
            one["refresh_interval"] = "1s"
    rules = (DEPLOY / "alerts.yml").read_text()
    (folder / "alerts.yml").write_text(re.sub(r"for: \d+[mh]", "for: 1s", rules))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = ["alerts.yml"]
    return yaml.safe_dump(config)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    folder = tmp_path_factory.mktemp("monitored")
    cli = CommandLine(folder / "home")
    (folder / "textfile").mkdir()
    config = folder / "watched.yaml"
    config.write_text(CONFIG.format(textfile=folder / "textfile"))
    try:
        cli.ok("up", "-c", config)
        job = write_job(folder, "watched", 100_000)
        limits = ("--name", "watched", "--max-concurrency", "12")
        handle = json.loads(cli.ok(*job.submission(*limits, "-d")))
        (folder / "prometheus.yml").write_text(prometheus_config(cli, folder))
        with prometheus(folder) as url:
            seen = Monitored(cli, url, folder / "textfile", handle)
            until(lambda: _up(seen))
            yield seen
    finally:
        cli.clean_up()


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[str]:
    """The server, by the configuration in a folder; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait(limit_s())


def _up(seen: Monitored) -> bool:
    try:
        return bool(seen.query('up{job="domyn-swarm",swarm="watched"} == 1'))
    except OSError:
        return False


def _status(url: str, key: str | None) -> int:
    request = urllib.request.Request(url)
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=limit_s()) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code


def test_metrics_are_told_to_those_with_their_key_alone(monitored: Monitored) -> None:
    where = monitored.endpoint
    key = Path(where["metrics_key_file"])
    secrets = Path(where["key_file"]).parent
    assert key.stat().st_mode & 0o777 == 0o600
    for wrong in (None, "", (secrets / "api_key").read_text()):
        assert _status(where["metrics_url"], wrong) == 401
    assert _status(where["metrics_url"], (secrets / "collector_key").read_text()) == 401
    assert _status(where["metrics_url"], key.read_text()) == 200
    reports = where["metrics_url"].removesuffix("/metrics") + "/v1/replicas"
    assert _status(reports, key.read_text()) == 401  # it reads metrics and nothing else


def test_the_text_is_what_prometheus_asks_for(monitored: Monitored) -> None:
    def told() -> str | None:
        found = list(monitored.textfile.glob("*.prom"))
        text = found[0].read_text() if found else ""
        return text if "domyn_swarm_job_rows_done_total{" in text else None

    text = until(told)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    [file] = monitored.textfile.iterdir()
    assert file.stat().st_mode & 0o777 == 0o644  # node_exporter is another user


def _queries() -> list[tuple[str, str]]:
    found = []
    for path in sorted((DEPLOY / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            found += [(f"{path.stem}: {panel['title']}", one["expr"]) for one in panel["targets"]]
        for one in board["annotations"]["list"]:
            found.append((f"{path.stem}: {one['name']}", one["expr"]))
    return found


def _processes_of(monitored: Monitored, replica: int) -> tuple[psutil.Process, psutil.Process]:
    """A replica's watchdog and its engine, as they last reported."""
    view = monitored.cli.home / "swarms" / "watched" / "serving" / "replicas.json"

    def alive() -> tuple[psutil.Process, psutil.Process] | None:
        [report] = [
            one
            for one in json.loads(view.read_text())["replicas"]
            if one["replica"] == replica and one["state"] == "ready"
        ] or [None]
        if report is None or not psutil.pid_exists(report["engine_pid"]):
            return None
        return psutil.Process(report["watchdog_pid"]), psutil.Process(report["engine_pid"])

    found: tuple[psutil.Process, psutil.Process] = until(alive)
    return found


def test_every_query_of_every_dashboard_has_an_answer(monitored: Monitored) -> None:
    queries = _queries()
    assert len(queries) > 25
    _, engine = _processes_of(monitored, 0)
    engine.kill()  # a restart is what one of them asks for
    filled = {
        title: expression.replace("$swarm", "watched")
        .replace("$job_id", ".*")
        .replace("$__rate_interval", "30s")
        for title, expression in queries
    }
    assert not [expression for expression in filled.values() if "$" in expression]
    wanting = dict(filled)

    endpoint = json.loads(monitored.cli.ok("endpoint", "watched", "--json"))

    def all_answered() -> bool:
        with contextlib.suppress(urllib.error.HTTPError):  # the engine that was killed
            post(endpoint["url"], Path(endpoint["key_file"]), {**HELLO, "model": endpoint["model"]})
        for title, expression in list(wanting.items()):
            values = [float(one["value"][1]) for one in monitored.query(expression)]
            if any(math.isfinite(value) for value in values):
                del wanting[title]
        return not wanting

    until(all_answered, every_s=1.0)


def test_what_is_stored_is_true(monitored: Monitored) -> None:
    def shares() -> dict[str, float]:
        expression = "sum by (outcome) (domyn_swarm_job_rows_done_total)"
        return {
            one["metric"]["outcome"]: float(one["value"][1]) for one in monitored.query(expression)
        }

    until(lambda: shares().get("answered", 0) > 300)
    found = shares()
    assert found["resumed"] == 0
    assert found["failed"] / (found["failed"] + found["answered"]) == pytest.approx(0.2, abs=0.03)
    repeated = monitored.query("sum by (reason) (domyn_swarm_job_requests_repeated_total)")
    counts = {one["metric"]["reason"]: float(one["value"][1]) for one in repeated}
    assert counts["error"] > 0
    assert counts["busy"] > 0
    answers = {
        one["metric"]["verdict"]: float(one["value"][1])
        for one in monitored.query("sum by (verdict) (domyn_swarm_job_answers)")
    }
    assert answers.keys() == {verdict.value for verdict in ReplyVerdict}
    assert answers["error"] / sum(answers.values()) == pytest.approx(0.2, abs=0.03)
    assert answers["error"] + answers["complete"] == sum(answers.values())
    [limit] = monitored.query("domyn_swarm_job_concurrency_limit")
    assert float(limit["value"][1]) == 12


def test_an_alert_fires_when_a_replica_dies(monitored: Monitored) -> None:
    def firing() -> set[str | None]:
        return {
            one["labels"].get("replica")
            for one in monitored.ask("alerts")["alerts"]
            if one["labels"]["alertname"] == "SwarmReplicaLost" and one["state"] == "firing"
        }

    until(lambda: "1" not in firing())
    watchdog, engine = _processes_of(monitored, 1)
    watchdog.kill()
    engine.kill()
    until(lambda: "1" in firing())
    stale = monitored.query('domyn_swarm_replica_state{state="stale",replica="1"} == 1')
    assert len(stale) == 1
