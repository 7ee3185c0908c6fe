"""How pending rows become results, and in how many processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from domyn_swarm.batch.asking import RetryPolicy
from domyn_swarm.batch.runner import Encode, RunPolicy
from domyn_swarm.batch.worker_process import WorkerProcess


@dataclass(frozen=True)
class WorkPlan:
    """How pending rows become results, in whichever process."""

    run_policy: RunPolicy
    retry_policy: RetryPolicy
    encode: Encode
    sync_rows: int = 20_000
    sync_s: float = 1.0
    notice: Callable[[str], None] = field(default=lambda _: None)


@dataclass(frozen=True)
class WorkerPlan:
    """Processes that share a run's work."""

    count: int
    start: Callable[[], Awaitable[WorkerProcess]]
