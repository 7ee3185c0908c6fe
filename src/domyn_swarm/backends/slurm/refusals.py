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
_OF_JOB = (
    (
        re.compile("time limit", re.IGNORECASE),
        "--time is the job's limit; without it, it has the endpoint's (backend.endpoint.wall_time "
        "or backend.time_limit of the swarm).",
    ),
    (
        re.compile("node configuration is not available|CPU count", re.IGNORECASE),
        "No node of the endpoint's partition has all that the job asks for: lower --cpus or --mem; "
        "without them it has the endpoint's size.",
    ),
    (
        re.compile(r"--mem|\bmemory\b", re.IGNORECASE),
        "--mem is the job's memory; without it, it has backend.endpoint.mem of the swarm, which "
        "may be null: then none is asked for.",
    ),
)
_ELSE_OF_JOB = (
    "The job has --time, --mem and --cpus of its own, and partition, account and QoS of the "
    "swarm's endpoint (backend.endpoint)."
)


def advice(said: str) -> str:
    """The keys of the configuration that a refusal is about, as far as its words show it."""
    return next((hint for pattern, hint in _ADVICE if pattern.search(said)), _ELSE)


def advice_for_job(said: str) -> str:
    """The flags of `job submit` that the refusal of a job of its own is about."""
    return next((hint for pattern, hint in _OF_JOB if pattern.search(said)), _ELSE_OF_JOB)
