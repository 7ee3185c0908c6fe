"""Calls of the program without its start, which costs most of a call: a process forks for each.

What runs is the program's own `main`, to its end, in a process of its own, with the arguments,
environment, folder and streams of the call; see `command_forks`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from patience import limit_s

PROGRAM = str(Path(sys.executable).with_name("domyn-swarm"))
LONGEST = 1 << 20  # of a request, bytes
_FORKS = str(Path(__file__).with_name("command_forks.py"))
_KEPT = ("PATH", "HOME", "LANG")  # nothing of the test that calls first


class CommandServer:
    """The process that forks, and the way to it; any thread may call."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, _FORKS, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        """It ends once nobody can ask it any more."""
        self._ours.close()
        self._process.wait()

    def run(
        self, arguments: list[str], environment: Mapping[str, str], stdin: str
    ) -> subprocess.CompletedProcess[str]:
        """Call the program, to its end, and read what it prints until nobody holds its streams.

        Raises:
            AssertionError: it, or what has its streams from it, did not end within the limit.
        """
        request = {"arguments": arguments, "environment": dict(environment), "cwd": str(Path.cwd())}
        with contextlib.ExitStack() as open_, tempfile.TemporaryFile() as given:
            given.write(stdin.encode())
            given.seek(0)
            pipes = [os.pipe() for _ in range(3)]
            for read, _ in pipes:
                open_.callback(os.close, read)
            theirs = [write for _, write in pipes]
            try:
                message = json.dumps(request).encode()
                socket.send_fds(self._ours, [message], [given.fileno(), *theirs])
            finally:
                for one in theirs:
                    os.close(one)
            stdout, stderr, end = _read([read for read, _ in pipes])
        assert end, f"{arguments} was killed: {stderr.decode()}"
        return subprocess.CompletedProcess(
            [PROGRAM, *arguments], int(end), stdout.decode(), stderr.decode()
        )


def _read(pipes: list[int]) -> list[bytes]:
    """What comes out of each until all who write have closed it."""
    seen = dict.fromkeys(pipes, b"")
    deadline = time.monotonic() + limit_s()
    with selectors.DefaultSelector() as selector:
        for one in pipes:
            selector.register(one, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(deadline - time.monotonic())
            assert ready, f"it did not end within {limit_s():.0f} s: {seen}"
            for key, _ in ready:
                if piece := os.read(key.fd, 1 << 16):
                    seen[key.fd] += piece
                else:
                    selector.unregister(key.fd)
    return list(seen.values())


@cache
def command_server() -> CommandServer:
    """The one of this process; it ends with it."""
    server = CommandServer()
    atexit.register(server.close)
    return server
