"""Which GPUs of a node belong to which of its replicas."""

from __future__ import annotations

import os
from collections.abc import Iterable

from domyn_swarm.errors import PlatformError


def visible_gpus(gpus_per_replica: int, replica: int) -> dict[str, str]:
    """The environment with a replica's own slice of this node's GPUs, or of those that the
    scheduler or the caller left visible; `replica` counts on this node.

    Raises:
        PlatformError: too few are visible.
    """
    if not gpus_per_replica:
        return {}
    first = replica * gpus_per_replica
    wanted: Iterable[int] = range(first, first + gpus_per_replica)
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, wanted))}
    devices = [one for one in allowed.split(",") if one.strip()][first : first + gpus_per_replica]
    if len(devices) < gpus_per_replica:
        raise PlatformError(
            f"Replica {replica} needs {gpus_per_replica} GPUs, but CUDA_VISIBLE_DEVICES leaves "
            f"{len(devices)} for it.",
            hint="Lower replicas or gpus_per_replica, or make more GPUs visible.",
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
