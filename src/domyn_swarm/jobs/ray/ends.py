"""The ends of a run over a Ray Dataset: rows and results stay on the cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from domyn_swarm.batch.engine import BatchPlan
from domyn_swarm.batch.work import WorkerPlan
from domyn_swarm.data.ray_backend import blocks_of
from domyn_swarm.jobs.ray.dataset import RayDataset, joined_blocks
from domyn_swarm.jobs.ray.workers import ray_workers
from domyn_swarm.jobs.spec import JobSpec


class RayEnds:
    """See `FrameEnds`."""

    name = "<ray>"
    elsewhere = True

    def __init__(self, frame: Any) -> None:  # noqa: ANN401 - ray.data.Dataset
        self._blocks = blocks_of(frame)
        self.dataset = RayDataset(self._blocks)

    def workers(self, spec: JobSpec) -> contextlib.AbstractAsyncContextManager[WorkerPlan | None]:
        """See `FrameEnds`: actors, one for each node."""
        return ray_workers(spec)

    def collect(self, spec: JobSpec, plan: BatchPlan, kept: Path | None) -> Any:  # noqa: ANN401, ARG002 - a Dataset
        """See `FrameEnds`."""
        return joined_blocks(spec, plan, self._blocks)
