"""A process that has imported the program, and forks for each call of it.

Starting Python and importing costs half a second of CPU, a fork some hundredths. A call finds what
it would find as the installed script: `sys.argv`, `sys.path`, the environment, the current folder,
the three streams; it ends as an interpreter does. Only the imports have happened before, without
any setting of the caller's.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from domyn_swarm.cli.app import COMMANDS, main

PROGRAM = str(Path(sys.executable).with_name("domyn-swarm"))
LONGEST = 1 << 20  # of a request, bytes
# What commands import when they need it; not what starts threads (polars) or few tests need.
_IMPORTED = (
    "alembic.command",
    "domyn_swarm",
    "domyn_swarm.backends.lepton",
    "domyn_swarm.backends.local",
    "domyn_swarm.backends.slurm",
    "domyn_swarm.batch",
    "domyn_swarm.cli.rendering",
    "domyn_swarm.config",
    "domyn_swarm.jobs",
    "domyn_swarm.planning.builder",
    "domyn_swarm.services.checkpoints",
    "domyn_swarm.services.doctor",
    "domyn_swarm.services.jobs",
    "domyn_swarm.services.pools",
    "domyn_swarm.services.swarms",
    "domyn_swarm.state",
    "jinja2",
    "pyarrow.parquet",
    "rich.table",
    "sqlalchemy.dialects.sqlite",
)


def _serve(asked: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal of the tests
    for name in _IMPORTED:
        import_module(name)
    for entry in COMMANDS:
        if entry.name != "top":  # a library that only a terminal needs
            import_module(entry.place.partition(":")[0])
    gc.collect()
    gc.freeze()
    while True:
        message, fds, _, _ = socket.recv_fds(asked, LONGEST, 4)
        _reap(os.WNOHANG if message else 0)
        if not message:
            return
        if os.fork() == 0:
            asked.close()
            _run(json.loads(message), fds)
        for one in fds:
            os.close(one)


def _reap(options: int) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            pass


def _run(request: dict[str, Any], fds: list[int]) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    *streams, end = fds
    os.set_inheritable(end, False)
    for number, one in enumerate(streams):
        os.dup2(one, number)
        os.close(one)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = [PROGRAM, *request["arguments"]]
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    threading._shutdown()  # type: ignore[attr-defined] - as an interpreter that ends
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(end, str(code).encode())
    os._exit(0)


if __name__ == "__main__":
    sys.path[0] = str(Path(PROGRAM).parent)  # as the installed script has it
    _serve(socket.socket(fileno=int(sys.argv[1])))
