"""A submitted job whose rows Ray reads and whose workers are its actors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from domyn_swarm.batch.engine import BatchPlan
from domyn_swarm.batch.input_files import files_of
from domyn_swarm.data.ray_backend import RayBackend, blocks_of
from domyn_swarm.errors import InvalidInput
from domyn_swarm.jobs.ray.cluster import connected
from domyn_swarm.jobs.ray.dataset import RayDataset
from domyn_swarm.jobs.ray.workers import ray_workers
from domyn_swarm.jobs.spec import JobSpec


@contextlib.asynccontextmanager
async def over_cluster(spec: JobSpec, plan: BatchPlan) -> AsyncIterator[BatchPlan]:
    """The plan with the cluster's blocks for rows and its actors for workers.

    Raises:
        PlatformError: there is no cluster at the address.
        InvalidInput: Ray reads other rows than those that were checked.
    """
    with connected(spec.ray_address):
        files = files_of(spec.input, recursive=spec.recursive)
        names = [str(file) for file in files]
        frame = RayBackend().read(names, files[0].kind, spec.backend_read_kwargs)
        blocks = await asyncio.to_thread(blocks_of, frame)
        dataset = RayDataset(blocks) if blocks.rows else plan.dataset  # Ray forgets the columns
        if blocks.rows != plan.dataset.rows or not set(plan.output.keys.columns) <= set(
            dataset.schema.names
        ):
            raise InvalidInput(
                f"Ray reads {blocks.rows} rows ({', '.join(blocks.schema.names)}) of {spec.input}, "
                f"which holds {plan.dataset.rows}.",
                hint="--backend-read-kwargs may not change which rows there are.",
            )
        async with ray_workers(spec) as workers:
            yield replace(plan, dataset=dataset, workers=workers)
