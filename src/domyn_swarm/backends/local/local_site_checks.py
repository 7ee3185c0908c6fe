"""The checks of `doctor` for this machine: whether a swarm can run on it."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator

from domyn_swarm.backends.checks import Check, check_engine, check_folder, check_model, failed, ok
from domyn_swarm.backends.endpoint.address import is_free
from domyn_swarm.backends.gpus import gpus_here
from domyn_swarm.backends.local.processes import HOST
from domyn_swarm.backends.node_checks import Visited, node_checks
from domyn_swarm.backends.rehearsal import PROGRAM, Rehearsal, Visit, question, watched
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan

_PORTS = 200


def site_checks(plan: DeploymentPlan) -> Iterator[Check]:
    """The checks of one swarm."""
    yield from check_model(plan)
    yield from check_engine(plan, None)
    yield check_folder("home_directory", plan.home_directory)
    yield _gpus(plan)
    ports = range(plan.port_from, plan.port_from + _PORTS)
    free = next((port for port in ports if is_free(HOST, port)), None)
    if free is None:
        yield failed(
            "ports",
            f"none of {ports[0]}-{ports[-1]} is free",
            "Set port to the beginning of a range with free ports.",
        )
    else:
        yield ok("ports", f"{free} is free")


def _gpus(plan: DeploymentPlan) -> Check:
    wanted = plan.layout.replicas * plan.layout.gpus_per_replica
    if not wanted:
        return ok("GPUs", "none are needed")
    available = gpus_here() or 0
    if available < wanted and plan.elastic is not None:
        return failed(
            "GPUs",
            f"up to {wanted} are needed, this machine has {available}",
            "Lower replicas.max or gpus_per_replica.",
        )
    if available < wanted:
        return failed(
            "GPUs",
            f"{wanted} are needed, this machine has {available}",
            "Lower replicas or gpus_per_replica.",
        )
    return ok("GPUs", f"{wanted} are needed, this machine has {available}")


_HOST = "127.0.0.1"


def checks_here(plan: DeploymentPlan, ctx: DeploymentContext, wish: Rehearsal) -> Iterator[Check]:
    """The checks of a rehearsal, run as a process. It is killed after `wish.within_s`.

    Raises:
        OSError: the swarms' folder cannot be written to.
    """
    request = question(plan, runtime=None, image=None, gpus=wish.gpus)
    folder = plan.home_directory / "rehearsals" / secrets.token_hex(4)
    killed_at = time.monotonic() + wish.within_s
    with Visit(folder, request) as visit, (folder / "log").open("w+b") as log:
        process = subprocess.Popen(
            [ctx.interpreter, str(folder / PROGRAM), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

        def ended() -> bool:
            return process.poll() is not None or time.monotonic() > killed_at

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
            yield failed("node", last[0], f"The program runs with {ctx.interpreter}.")
            return
        yield ok("node", "ran on this machine")
        yield from node_checks(plan, Visited(report, calls[0] if calls else None, visit.was_called))
