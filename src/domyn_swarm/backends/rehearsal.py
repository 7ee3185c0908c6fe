"""A rehearsal: our program runs on a node for a moment, and reports the conditions for swarms
there.

A platform starts `node_report.py` in a folder that a `Visit` has prepared; the visit and the
program exchange files in it, and connect to each other. `node_checks` evaluates the report.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from domyn_swarm.backends import node_report
from domyn_swarm.backends.checks import engine_module
from domyn_swarm.paths import private_dir, write_private
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.probing import Clock

PROGRAM = "node_report.py"
LISTENS_S = 60.0  # how long the program waits for its report to be read
_CALL_S = 5.0
_LOOK_S = 0.2
_ABANDONED_S = 86_400.0
_PACKAGES = ["domyn-swarm", "pyarrow", "smg", "vllm", "sglang", "torch", "ray"]
_IMPORTS = [
    "domyn_swarm.backends.endpoint.endpoint_program",
    "domyn_swarm.backends.slurm.replica_task",
    "domyn_swarm.jobs.worker",
]


@dataclass(frozen=True)
class Rehearsal:
    """The request: whether with a replica's GPUs, how long it may wait in the queue, and a callback
    that receives what it waits for.
    """

    gpus: bool
    within_s: float
    say: Callable[[str], None]


class Call(NamedTuple):
    """The result of calling the program on its node."""

    address: str
    error: str | None
    ahead_s: float | None  # the node's clock minus ours, to half the time of the call


class Visit:
    """The asking side, in a temporary folder of its own. Use it as a context."""

    def __init__(self, folder: Path, question: dict[str, Any]) -> None:
        self.folder = folder
        self._token = secrets.token_hex(16)
        self._question = question
        self._server: socket.socket | None = None
        self._held: IO[bytes] | None = None
        self.was_called = False

    def __enter__(self) -> Visit:
        """Prepare the folder.

        Raises:
            OSError: it cannot be written to.
        """
        _remove_abandoned(self.folder.parent)
        private_dir(self.folder)
        shutil.copyfile(node_report.__file__, self.folder / PROGRAM)
        held = self.folder / "held"
        write_private(held, "")
        self._held = held.open("r+b")
        with contextlib.suppress(OSError):  # a file system without locks: the report will say so
            fcntl.lockf(self._held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._server = node_report.listen()
        threading.Thread(target=self._await_call, args=(self._server,), daemon=True).start()
        port = self._server.getsockname()[1]
        asked = {
            **self._question,
            "token": self._token,
            "callers": [[host, port] for host in _own_names()],
            "listens_s": LISTENS_S,
        }
        write_private(self.folder / "question.json", json.dumps(asked))
        return self

    def __exit__(self, *_: object) -> None:
        """End the program and remove the folder."""
        with contextlib.suppress(OSError):
            (self.folder / "over").touch()
        if self._server is not None:
            with contextlib.suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)  # a thread waits in it
            self._server.close()
        if self._held is not None:
            self._held.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _await_call(self, server: socket.socket) -> None:
        """Record whether the program reaches this machine."""
        while True:
            try:
                call, _ = server.accept()
                with call:
                    call.settimeout(_CALL_S)
                    said = call.makefile("rb").readline(node_report.LONGEST_TOKEN + 1)
            except OSError:  # closed, or a caller that sends nothing
                if server.fileno() < 0:
                    return
                continue
            if secrets.compare_digest(said.strip(), self._token.encode()):
                self.was_called = True

    def listening(self) -> tuple[str, int] | None:
        """The node's name and the port, once the program runs there."""
        found = self._read("listening.json")
        return None if found is None else (str(found["node"]), int(found["port"]))

    def report(self) -> dict[str, Any] | None:
        """The program's report, once it exists."""
        return self._read("report.json")

    def _read(self, name: str) -> dict[str, Any] | None:
        list(self.folder.iterdir())  # network file systems read a folder anew when it is opened
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return dict(found)

    def call(self, address: str, port: int) -> Call:
        """Call the program, and compare clocks."""
        try:
            began = time.monotonic()
            with socket.create_connection((address, port), _CALL_S) as call:
                call.sendall(f"{self._token}\n".encode())
                said = call.makefile("rb").readline(64)
            took_s = time.monotonic() - began
            return Call(address, None, float(said) - (time.time() - took_s / 2))
        except (OSError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return Call(address, words, None)


def _remove_abandoned(folder: Path) -> None:
    """Remove folders of visits whose program was killed: no rehearsal lasts that long."""
    for old in folder.glob("*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(old)


def _own_names() -> list[str]:
    """Names and addresses by which others may reach this machine."""
    names = dict.fromkeys((socket.gethostname(), socket.getfqdn()))
    return [name for name in names if name]


class OtherNode(NamedTuple):
    """How the program gets to a second node, where a replica spans several."""

    start: tuple[str, ...]  # a command before it; `{node}` is the first node's name
    address_program: str  # Python that prints where other nodes reach the one where it runs


def question(
    plan: DeploymentPlan,
    *,
    runtime: str | None,
    image: str | None,
    gpus: bool,
    other: OtherNode | None = None,
) -> dict[str, Any]:
    """What the program should check. `runtime`: the container program of the engines; `other`:
    of a second node as well.
    """
    return {
        "packages": _PACKAGES,
        "imports": _IMPORTS,
        "engine_module": engine_module(plan.engine) if runtime is None else None,
        "runtime": runtime,
        "image": image if runtime is not None else None,
        "gpus": gpus,
        "other_node": None if other is None else other.start,
        "address_program": None if other is None else other.address_program,
    }


def watched(
    visit: Visit, address_of: Callable[[str], str], ended: Callable[[], bool], clock: Clock
) -> Iterator[Call]:
    """Wait for the report, and call the program as soon as it listens.

    Args:
        visit: whose report.
        address_of: the address of a node by its name.
        ended: whether the program has ended, or never will run.
        clock: by which the visit pauses.
    """
    called = False
    while visit.report() is None or not called:
        over = ended()
        there = visit.listening()
        if there is not None and not called:
            yield visit.call(address_of(there[0]), there[1])
            called = True
            continue
        if over:
            return
        clock.sleep(_LOOK_S)
