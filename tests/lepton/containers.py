"""What a workspace runs for us: containers that are processes of this machine."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from patience import limit_s

TIMES_S = {"queued": 0.1, "starting": 0.2, "deleting": 0.3}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def container_env(env: dict[str, str], folder: Path) -> dict[str, str]:
    """What an image would have: this environment's programs, a home of its own, nothing else."""
    home = folder / "container-home"
    home.mkdir(parents=True, exist_ok=True)
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", **env}


def start(command: list[str], env: dict[str, str], folder: Path, log: Path) -> subprocess.Popen:
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=container_env(env, folder),
            start_new_session=True,
        )


def end(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)


@dataclass
class Container:
    """A replica of an endpoint. Its port is mapped to a free one, as a container's is."""

    id: str
    process: subprocess.Popen
    port: int
    log: Path
    created_at: int

    def healthy(self) -> bool:
        if self.process.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=limit_s()):
                return True
        except urllib.error.HTTPError as not_yet:
            not_yet.close()
            return False
        except OSError:
            return False


class Gateway:
    """The endpoint's address: asks for the token, and hands each request to a healthy replica."""

    def __init__(self, replicas: Callable[[], list[Container]], tokens: Callable[[], set[str]]):
        turn = itertools.count()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                alive = [one for one in replicas() if one.process.poll() is None]
                if token not in tokens():
                    self._reply(401, b'{"error": "token"}')
                elif not alive:
                    self._reply(503, b'{"error": "no replica"}')
                else:
                    self._hand_on(alive[next(turn) % len(alive)], body)

            def _hand_on(self, replica: Container, body: bytes) -> None:
                try:
                    there = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=limit_s())
                    headers = {
                        name: value
                        for name, value in self.headers.items()
                        if name.lower() in ("authorization", "content-type", "accept")
                    }
                    there.request(self.command, self.path, body, headers)
                    reply = there.getresponse()
                    status, said = reply.status, reply.read()
                    there.close()
                except OSError:
                    status, said = 502, b'{"error": "replica"}'
                with contextlib.suppress(OSError):  # the client is gone
                    self._reply(status, said)

            def _reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = _forward  # noqa: N815 - the library's names

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Deployment:
    """An endpoint: as many containers as it wants replicas."""

    name: str
    document: dict[str, Any]  # as it was sent, patches merged
    component: Callable[[dict[str, Any]], dict[str, Any]]  # where its container is described
    folder: Path
    secret: Callable[[str], str]
    containers: list[Container] = field(default_factory=list)
    leaving: list[Container] = field(default_factory=list)
    deleted_at: float | None = None
    forced: str | None = None  # a state that a test wants seen
    reasons: dict[int, tuple[str, str]] = field(default_factory=dict)  # of replicas, likewise
    gateway: Gateway | None = None
    crowded: bool = False  # no capacity: nothing is placed

    def __post_init__(self) -> None:
        self.gateway = Gateway(lambda: self.containers, self._tokens)
        self.reconcile()

    def _tokens(self) -> set[str]:
        return {
            self.secret(one["value_from"]["token_name_ref"])
            for one in self.document["spec"].get("api_tokens") or []
        }

    @property
    def wanted(self) -> int:
        return int(self.component(self.document)["min_replicas"])

    def reconcile(self) -> None:
        """Have as many containers as are wanted."""
        while len(self.containers) > self.wanted:
            self.leaving.append(self.containers.pop())
            end(self.leaving[-1].process, signal.SIGTERM)
        while len(self.containers) < self.wanted and not self.crowded:
            self.containers.append(self._start())

    def _start(self) -> Container:
        about = self.component(self.document)
        inside, outside = str(about["port"]), free_port()
        command = [
            {inside: str(outside), "0.0.0.0": "127.0.0.1"}.get(word, word)
            for word in about["command"]
        ]
        env = {
            one["name"]: one["value"]
            if one.get("value") is not None
            else self.secret(one["value_from"]["secret_name_ref"])
            for one in about["envs"]
        }
        number = f"{self.name}-{secrets.token_hex(3)}"
        log = self.folder / f"{number}.log"
        process = start(command, env, self.folder, log)
        return Container(number, process, outside, log, time.time_ns() // 1000)

    def reason(self, index: int) -> tuple[str, str]:
        if index in self.reasons:
            return self.reasons[index]
        if self.containers[index].process.poll() is not None:
            return ("SystemError", "the container has ended")
        return ("Ready", "") if self.containers[index].healthy() else ("InProgress", "")

    def ready(self) -> int:
        return sum(self.reason(index)[0] == "Ready" for index in range(len(self.containers)))

    def state(self) -> str:
        if self.deleted_at is not None:
            return "Deleting"
        if self.forced is not None:
            return self.forced
        if not self.wanted:
            return "Stopped"
        if self.ready() >= self.wanted:
            return "Ready"
        return "Starting" if not self.ready() else "Scaling"

    @property
    def gone(self) -> bool:
        late = self.deleted_at is not None
        return late and time.monotonic() - (self.deleted_at or 0) >= TIMES_S["deleting"]

    def close(self) -> None:
        for one in (*self.containers, *self.leaving):
            end(one.process)
            one.process.wait()
        if self.gateway is not None:
            self.gateway.close()
            self.gateway = None


@dataclass
class Job:
    """A job: one container, in states that advance."""

    id: str
    document: dict[str, Any]
    folder: Path
    secret: Callable[[str], str]
    grace_s: float
    created: float = field(default_factory=time.monotonic)
    process: subprocess.Popen | None = None
    stopped_at: float | None = None
    deleted: bool = False
    forced: str | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.id}.log"

    def state(self) -> str:
        if self.forced is not None:
            return self.forced
        if self.deleted:
            return "Deleted"
        if self.stopped_at is not None:
            return self._stopping()
        age_s = time.monotonic() - self.created
        if self.process is None and age_s < TIMES_S["queued"]:
            return "Queueing"
        if self.process is None:
            self._start()
        code = None if self.process is None else self.process.poll()
        if code is not None:
            return "Completed" if code == 0 else "Failed"
        return "Starting" if age_s < TIMES_S["starting"] else "Running"

    def _stopping(self) -> str:
        if self.process is None or self.process.poll() is not None:
            return "Stopped"
        if time.monotonic() - (self.stopped_at or 0) > self.grace_s:
            end(self.process)
        return "Stopping"

    def _start(self) -> None:
        spec = self.document["spec"]
        env = {
            one["name"]: one["value"]
            if one.get("value") is not None
            else self.secret(one["value_from"]["secret_name_ref"])
            for one in spec.get("envs") or []
        }
        self.process = start(spec["container"]["command"], env, self.folder, self.log)

    def stop(self) -> None:
        self.state()
        if self.stopped_at is None:
            self.stopped_at = time.monotonic()
            if self.process is not None:
                end(self.process, signal.SIGTERM)

    def close(self) -> None:
        if self.process is not None:
            end(self.process)
            self.process.wait()
