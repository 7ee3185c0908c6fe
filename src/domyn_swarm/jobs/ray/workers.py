"""Actors of a Ray cluster as the workers of a run.

They run the program of any worker: the coordinator sends rows when there is room for them, and
results go into the checkpoint, which therefore has to be on a file system that all nodes share. A
lost node takes its actors with it; the coordinator starts others, which get their rows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from typing_extensions import override

from domyn_swarm.batch.run.link import Invitation, Link, Report, WorkerListener, call
from domyn_swarm.batch.run.worker_processes import WorkerPlan, WorkerProcess
from domyn_swarm.errors import JobError, PlatformError
from domyn_swarm.jobs.linked_worker import work_over
from domyn_swarm.jobs.ray.ray_cluster import fitting_workers, own_host
from domyn_swarm.jobs.worker_program import check_version
from domyn_swarm.jobs.worker_spec import JobSpec

_START_S = 120.0  # Ray may have to start a process, and import its modules
_STARTS, _AGAIN_S = 5, 2.0  # Ray takes some seconds to notice a lost node


class RayWorker(WorkerProcess):
    """One actor, and the link that it has established."""

    def __init__(self, actor: Any, ending: asyncio.Future[int], link: Link[Report]) -> None:  # noqa: ANN401 - Ray's
        self.link = link
        self._actor = actor
        self._ending = ending

    @property
    @override
    def name(self) -> str:
        """The actor's id."""
        return f"Ray actor {self._actor._actor_id.hex()[:8]}"

    @override
    async def ended(self) -> int:
        """The exit code; 1 if its node or its process was lost."""
        import ray

        try:
            return await self._ending
        except ray.exceptions.RayError:
            return 1

    @override
    def kill(self) -> None:
        import ray

        ray.kill(self._actor)


@contextlib.asynccontextmanager
async def ray_workers(spec: JobSpec) -> AsyncIterator[WorkerPlan]:
    """Workers on the cluster that this process is connected to; by default as many as fit."""
    async with WorkerListener(own_host()) as listener:

        async def start() -> RayWorker:
            return await _start(spec, listener)

        yield WorkerPlan(spec.workers or fitting_workers(), start)


async def _start(spec: JobSpec, listener: WorkerListener) -> RayWorker:
    """An actor that has connected; another actor if its node is lost meanwhile."""
    for _ in range(_STARTS - 1):
        with contextlib.suppress(_NodeDied):
            return await _start_once(spec, listener)
        await asyncio.sleep(_AGAIN_S)
    return await _start_once(spec, listener)


async def _start_once(spec: JobSpec, listener: WorkerListener) -> RayWorker:
    import ray

    invitation = listener.invite()
    options = {"num_cpus": 1, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
    actor = ray.remote(**options)(_Actor).remote()
    work = actor.work.remote(spec.model_dump_json(), invitation)
    ending = asyncio.wrap_future(work.future())
    ending.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, or not
    calling = asyncio.ensure_future(listener.met(invitation, _START_S))
    try:
        await asyncio.wait({ending, calling}, return_when=asyncio.FIRST_COMPLETED)
        if not calling.done():
            error = ending.exception()
            died = isinstance(error, ray.exceptions.RayActorError)
            raise _not_begun(_NodeDied if died else JobError, error, invitation)
        return RayWorker(actor, ending, await calling)
    except TimeoutError as error:
        ray.kill(actor)
        free = ray.available_resources().get("CPU", 0)
        raise PlatformError(
            f"Ray has no room for a worker: for {_START_S:.0f} s none began, and {free:g} CPUs "
            "are free.",
            hint="A worker needs one CPU. Ask for fewer with --workers, or free some.",
        ) from error
    except BaseException:
        ray.kill(actor)
        raise
    finally:
        calling.cancel()


class _NodeDied(JobError):
    """The actor's node was lost before the actor started; another actor may start."""


def _not_begun(
    kind: type[JobError], error: BaseException | None, invitation: Invitation
) -> JobError:
    if error is None:
        return kind(
            "A worker of the Ray cluster does not reach this machine at "
            f"{invitation.host}:{invitation.port}.",
            hint="The cluster's nodes must be let in, on any port.",
        )
    lines = str(getattr(error, "cause", None) or error).strip().splitlines()
    return kind(
        f"A worker of the Ray cluster cannot begin: {lines[-1]}",
        hint="All nodes need the same domyn-swarm, the job's module, and the folders of the "
        "checkpoint and the swarm: a shared file system.",
    )


class _Actor:
    """The program on the cluster. Ray makes an actor of it."""

    def work(self, spec_json: str, invitation: Invitation) -> int:
        """Work until there are no more rows; returns the exit code."""
        spec = JobSpec.model_validate_json(spec_json)
        check_version(spec)
        if not Path(spec.checkpoint_root).is_dir():
            raise JobError(f"{spec.checkpoint_root} does not exist on this node.")
        return work_over(spec, lambda: call(invitation))
