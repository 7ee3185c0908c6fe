"""Programs under test without their start: forked from a process that has imported them.

Half a second of each start goes into imports. A fork server (`multiprocessing`'s) has them done,
and forks: what runs is a process of its own with the arguments, environment, folder, files and exit
code that it is given, and a SIGKILL hits it as any other. What it starts itself it starts as ever.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import forkserver, process
from pathlib import Path
from threading import Thread

import pytest

from patience import limit_s

# No setting of the test that happens to start the server; PYTHONPATH may name other sources.
_KEPT = ("PATH", "HOME", "LANG", "PYTHONPATH")
_SCRIPTS = str(Path(sys.executable).parent)
_TESTS = str(Path(__file__).parent)
_CALL = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as door:
    door.connect(%r)
    files = [f"/proc/{os.getpid()}/fd/{number}" for number in range(3)]
    asked = [sys.argv[1:], dict(os.environ), os.getcwd(), files]
    door.sendall(json.dumps(asked).encode())
    door.shutdown(socket.SHUT_WR)
    sys.exit(int(door.makefile().read()))
"""
_PRELOADED = [
    "warm",
    "pandas",  # Arrow imports it where it is installed
    "pyarrow.parquet",
    "rich.table",
    "domyn_swarm.backends.local.local_compute",
    "domyn_swarm.backends.local.local_serving",
    "domyn_swarm.cli.checkpoint_commands",
    "domyn_swarm.cli.job_commands",
    "domyn_swarm.cli.logs_command",
    "domyn_swarm.cli.status",
    "domyn_swarm.cli.pool_commands",
    "domyn_swarm.cli.rendering",
    "domyn_swarm.cli.config_commands",
    "domyn_swarm.cli.swarm_commands",
    "domyn_swarm.cli.views",
    "domyn_swarm.engines.sim",
    "domyn_swarm.jobs.builtin.chat",
    "domyn_swarm.jobs.linked_worker",
    "domyn_swarm.jobs.worker",
    "domyn_swarm.services.doctor",
]


@dataclass(frozen=True)
class Program:
    """A program's function (`module:name`), and what a process of it is given."""

    entry: str
    words: Sequence[str]
    env: Mapping[str, str]
    stdin: str
    stdout: str
    stderr: str
    folder: str


class Process:
    """A forked process; the part of `subprocess.Popen` that tests use."""

    def __init__(self, program: Program) -> None:
        env = dict(program.env)
        program = replace(program, env=env)  # `os.environ` cannot be sent
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        _start_server()
        self._process = context.Process(target=_become, args=(program,))
        self._process.start()
        self.pid: int = self._process.pid or 0

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    @property
    def returncode(self) -> int | None:
        """As `Popen.returncode`: minus the signal's number if one killed it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        return self.returncode

    def wait(self) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it hangs; it is killed.
        """
        self._process.join(limit_s())
        if (code := self.returncode) is None:
            self.kill()
            raise subprocess.TimeoutExpired(str(self._process), limit_s())
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run(
    entry: str, words: Sequence[str], env: Mapping[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in the current folder, and read what it printed."""
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        given, out, err = (Path(folder) / name for name in ("in", "out", "err"))
        for path in (given, out, err):
            path.write_text(stdin if path is given else "", encoding="utf-8")
        program = Program(entry, words, env, str(given), str(out), str(err), str(Path.cwd()))
        code = Process(program).wait()
        return subprocess.CompletedProcess(
            [entry, *words], code, out.read_text("utf-8"), err.read_text("utf-8")
        )


def run_code(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """As `python -c CODE WORDS`, to its end."""
    return run("warm:_execute", [code, *words], os.environ)


@contextmanager
def doorway(name: str, entry: str) -> Iterator[Path]:
    """A folder for PATH with a program that scripts can call as if it were installed.

    The program says here what it was called with; it is forked, with the caller's files, and ends
    for the caller with the fork's exit code.
    """
    with tempfile.TemporaryDirectory(prefix="door-") as folder:
        door = Path(folder) / "door"
        program = Path(folder) / name
        program.write_text(f"#!{sys.executable} -IS\n{_CALL % str(door)}", encoding="utf-8")
        program.chmod(0o700)
        with _Door(str(door), _answerer(entry)) as server:
            Thread(target=server.serve_forever, args=(0.05,)).start()
            yield Path(folder)
            server.shutdown()


class _Door(socketserver.ThreadingUnixStreamServer):
    daemon_threads = False  # each call is seen to its end


def _answerer(entry: str) -> type[socketserver.StreamRequestHandler]:
    class Answerer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            words, env, folder, (stdin, stdout, stderr) = json.loads(self.rfile.read())
            code = Process(Program(entry, words, env, stdin, stdout, stderr, folder)).wait()
            self.wfile.write(str(code).encode())

    return Answerer


def start_worker(job_folder: Path) -> Process:
    """The worker of a job, as `python -m domyn_swarm.jobs.worker FOLDER`; `said` reads its log."""
    log = str(_log_of(job_folder))
    words = [str(job_folder)]
    entry = "domyn_swarm.jobs.worker:main"
    return Process(Program(entry, words, os.environ, os.devnull, log, log, str(Path.cwd())))


def said(job_folder: Path) -> str:
    """What the workers of a job have logged."""
    log = _log_of(job_folder)
    return log.read_text("utf-8") if log.exists() else ""


def _log_of(job_folder: Path) -> Path:
    return job_folder.with_name(f"{job_folder.name}.said")


def _execute() -> None:
    code = sys.argv.pop(1)
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})


def _start_server() -> None:
    _use_short_folder()
    with pytest.MonkeyPatch.context() as environment:
        for name in set(os.environ).difference(_KEPT):
            environment.delenv(name)
        forkserver.ensure_running()


def _use_short_folder() -> None:
    """Of the server's socket, which the library lets lie in what is the folder for temporary files
    as the first test asks for a process: some tests have one whose name is too long.
    """
    config = process.current_process()._config  # type: ignore[attr-defined]
    if "tempdir" not in config:
        config["tempdir"] = tempfile.mkdtemp(prefix="warm-", dir="/tmp")
        atexit.register(shutil.rmtree, config["tempdir"], ignore_errors=True)


def _become(program: Program) -> None:
    """In the fork: what `execve` would have set, then the program."""
    os.environ.clear()
    os.environ.update(program.env)
    os.chdir(program.folder)
    written = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path, flags in (
        (0, program.stdin, os.O_RDONLY),
        (1, program.stdout, written),
        (2, program.stderr, written),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.argv = [program.entry, *program.words]
    ours = {"", _TESTS, program.folder}
    sys.path[:] = [_SCRIPTS, *(one for one in sys.path if one not in ours)]
    module, _, name = program.entry.partition(":")
    try:
        sys.exit(getattr(import_module(module), name)())
    finally:
        atexit._run_exitfuncs()
