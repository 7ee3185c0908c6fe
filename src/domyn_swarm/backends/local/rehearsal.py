"""The rehearsal as a process of this machine, with the environment that a swarm's would have."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator

from domyn_swarm.backends.checks import Check, failed, ok
from domyn_swarm.backends.node_checks import Visited, node_checks
from domyn_swarm.backends.rehearsal import PROGRAM, Rehearsal, Visit, question, watched
from domyn_swarm.planning.context import DeploymentContext
from domyn_swarm.planning.plan import DeploymentPlan

_HOST = "127.0.0.1"


def checks_here(plan: DeploymentPlan, ctx: DeploymentContext, wish: Rehearsal) -> Iterator[Check]:
    """Run the program and say what it found. It is killed when it outlasts its time.

    Raises:
        OSError: the swarms' folder cannot be written to.
    """
    asked = question(plan, runtime=None, image=None, gpus=wish.gpus)
    folder = plan.home_directory / "rehearsals" / secrets.token_hex(4)
    gives_up_at = time.monotonic() + wish.within_s
    with Visit(folder, asked) as visit, (folder / "log").open("w+b") as log:
        process = subprocess.Popen(
            [ctx.interpreter, str(folder / PROGRAM), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

        def ended() -> bool:
            return process.poll() is not None or time.monotonic() > gives_up_at

        try:
            calls = list(watched(visit, lambda _: _HOST, ended, time))
            report = visit.report()
        finally:
            (folder / "over").touch()
            process.kill()
            process.wait()
        if report is None:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()[-1:] or ["no report"]
            yield failed("node", last[0], f"It runs with {ctx.interpreter}.")
            return
        yield ok("node", "ran on this machine")
        yield from node_checks(plan, Visited(report, calls[0] if calls else None, visit.was_called))
