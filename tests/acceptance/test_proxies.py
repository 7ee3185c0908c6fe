"""A site's proxy for what is outside: no request of ours within a swarm goes there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from acceptance.test_scripts import ASK
from command_line import CommandLine, write_job, write_sim_config
from patience import limit_s
from process_list import running

_LOWER = ("http_proxy", "https_proxy", "all_proxy")
PROXY_VARIABLES = (*_LOWER, *(name.upper() for name in _LOWER))
EXEMPTIONS = ("no_proxy", "NO_PROXY")
ENGINE = "domyn_swarm.engines.sim_server"


class Proxy:
    """Refuses everything, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def parse_request(self) -> bool:
                if super().parse_request():
                    asked.append(self.requestline)
                    self.send_error(403)
                return False

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In the environment of everything that is started."""
    made = Proxy()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    for name in PROXY_VARIABLES:
        monkeypatch.setenv(name, made.url)
    for name in EXEMPTIONS:
        monkeypatch.delenv(name, raising=False)
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def environment_of_engine() -> dict[str, str]:
    [engine] = [one for one in running() if _is_our_engine(one)]
    return engine.environ()


def _is_our_engine(process: psutil.Process) -> bool:
    try:
        told = process.environ()
        return ENGINE in process.cmdline() and told.get("DOMYN_SWARM_HOME") == os.environ.get(
            "DOMYN_SWARM_HOME"
        )
    except psutil.Error:
        return False


def test_no_request_of_a_swarm_goes_to_the_proxy(
    cli: CommandLine, tmp_path: Path, proxy: Proxy
) -> None:
    sim, job = write_sim_config(tmp_path), write_job(tmp_path, "inside", 40)
    cli.ok("up", "-c", sim.path)
    cli.ok(*job.submission("--name", "demo"))
    job.assert_complete()
    (tmp_path / "ask.py").write_text(ASK)
    cli.ok("job", "submit-script", tmp_path / "ask.py", "--", "?", "0")
    cli.ok("status", "demo")
    assert proxy.asked == []
    assert environment_of_engine()["https_proxy"] == proxy.url  # it may fetch from a hub


CHAT = """
body='{"model": "sim-model", "messages": [{"role": "user", "content": "?"}]}'
curl --silent --show-error --fail-with-body "$OPENAI_BASE_URL/chat/completions" -d "$body" \
  -H "Authorization: Bearer $OPENAI_API_KEY" -H 'Content-Type: application/json'
"""
CLIENT = """
import openai
answer = openai.OpenAI().chat.completions.create(
    model="sim-model", messages=[{"role": "user", "content": "?"}]
)
print(answer.to_json())
"""


@pytest.mark.parametrize("own", [{}, {"NO_PROXY": ".example.org"}, {"no_proxy": "192.0.2.7"}])
def test_curl_and_clients_reach_the_endpoint_with_what_is_exported_for_them(
    cli: CommandLine, tmp_path: Path, proxy: Proxy, own: dict[str, str]
) -> None:
    cli.ok("up", "-c", write_sim_config(tmp_path).path)
    exports = cli.ok("endpoint", "demo", "--env")
    told = {**cli.environment, **own}

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", f"{exports}\n{script}"],
            env=told,
            capture_output=True,
            text=True,
            timeout=limit_s(),
            check=False,
        )
        assert done.returncode == 0, (done.stdout, done.stderr, proxy.asked)
        return done.stdout

    for script in (CHAT, f"{sys.executable} - <<'END'\n{CLIENT}END"):
        assert json.loads(run(script))["choices"]
    assert proxy.asked == []
    host = str(urlsplit(cli.json("endpoint", "demo")["url"]).hostname)
    for name in EXEMPTIONS:  # what the user had exempted, stays so
        assert set(run(f'printf %s "${name}"').split(",")) == {host, *own.values()}
