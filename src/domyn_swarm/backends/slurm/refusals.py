"""What to do about a script that Slurm, or a site's filter before it, refuses. Pure."""

from __future__ import annotations

import re

_GPUS = "backend.gres says how GPUs are asked for: none, or a template such as gpu:a100:{n}."
_MEMORY = (
    "backend.endpoint.mem, backend.mem (whole nodes) and memory_gb say what --mem is: empty, it is "
    "not written."
)
_NODES = (
    "No node of the partition has all that is asked for: compare gpus_per_replica, gpus_per_node, "
    "backend.gres, cpus_per_task and memory_gb with `scontrol show node`."
)
_ADVICE = (
    (re.compile("node configuration is not available"), _NODES),
    (re.compile(r"gres\b|generic resource|\bTRES\b|--gpu|\bGPUs?\b", re.IGNORECASE), _GPUS),
    (re.compile(r"--mem|\bmemory\b", re.IGNORECASE), _MEMORY),
)
_ELSE = "Check partition, account, qos and limits."


def advice(said: str) -> str:
    """The keys of the configuration that a refusal is about, as far as its words show it."""
    return next((hint for pattern, hint in _ADVICE if pattern.search(said)), _ELSE)
