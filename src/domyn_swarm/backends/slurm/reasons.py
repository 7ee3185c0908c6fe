"""Why a job waits or is refused, in Slurm's words, with the key to change or the command to run.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from domyn_swarm.errors import quantity


class Keys(NamedTuple):
    """The keys to change, by the subject of a limit."""

    time: str
    gpus: str
    cpus: str
    memory: str
    nodes: str
    jobs: str
    partition: str
    account: str
    qos: str
    preamble: str


OF_SWARM = Keys(
    time="backend.time_limit",
    gpus="gpus_per_replica",
    cpus="cpus_per_task",
    memory="memory_gb",
    nodes="gpus_per_replica or gpus_per_node",
    jobs="replicas",
    partition="backend.partition",
    account="backend.account",
    qos="backend.qos",
    preamble="backend.preamble",
)
OF_JOB = Keys(  # a detached job runs in the endpoint's partition
    time="--time",
    gpus="what it asks for",
    cpus="--cpus",
    memory="--mem",
    nodes="what it asks for",
    jobs="how many jobs run at a time",
    partition="the swarm's backend.endpoint.partition (or backend.partition)",
    account="the swarm's backend.account",
    qos="the swarm's backend.endpoint.qos (or backend.qos)",
    preamble="the swarm's backend.preamble",
)

# Limits of a QoS or an association that one job exceeds by itself, whatever else runs.
_PER_JOB = re.compile(r"(?:QOS|Assoc)(?:Max\w*(?:PerJob|PerNode)\w*|Min\w+)")
# Limits that the user's own jobs share: if only the swarm's endpoint runs, they are too low.
_PER_USER = re.compile(r"(?:QOS|Assoc)Max\w*PerUser\w*|AssocMaxJobsLimit")
# Limits that others of the same account share too.
# Limits of run minutes (`Max…RunMinsPerUser`) are among them: they leave room as time passes.
_PER_GROUP = re.compile(r"(?:QOS|Assoc)Grp.*|Max\w+Per(?:Account|User)")
AFTER_ENDPOINT = "Dependency"  # replicas are scheduled once the endpoint's job has started
_NEVER = {
    "PartitionConfig": "{partition} does not take such a job (its time, its size), user or "
    "account; `domyn-swarm doctor -c FILE` compares them",
    "PartitionTimeLimit": "{time} is above the partition's MaxTime",
    "PartitionNodeLimit": "{partition} gives a job fewer nodes, or no job so few",
    "MaxMemPerLimit": "{memory} is above the partition's MaxMemPerNode or MaxMemPerCPU",
    "BadConstraints": "no node has what is asked for",
    "InvalidAccount": "{account} cannot be used",
    "InvalidQOS": "{qos} cannot be used",
    "QOSNotAllowed": "{qos} cannot be used there",
    "AccountNotAllowed": "{account} cannot be used there",
    "DependencyNeverSatisfied": "what it depends on did not come about: see {preamble}",
    "ReservationDeleted": "its reservation is gone: see {preamble}",
    "ReservationInvalid": "its reservation cannot be used: see {preamble}",
    "DeadLine": "its deadline has passed: see {preamble}",
}
_ASKED = "what is asked for"
_HELD = "it is held, `scontrol release {job}` lets it run"
# By `scontrol requeuehold`; squeue shows the controller's message with _ for blanks, or unchanged.
_PUT_BACK = re.compile(r"job[ _]requeued[ _]in[ _](?:held|special[ _]exit)[ _]state", re.I)
_WAITS = {
    AFTER_ENDPOINT: "replicas start after the endpoint",
    "JobHeldUser": _HELD,
    "JobHeldAdmin": "an administrator holds it, and lets it run by `scontrol release {job}`",
}
_HELD_BY_SLURM = (
    "Slurm could not start it, often for its node's prolog, and holds it; "
    "`scontrol release {job}` tries again"
)
# Held by Slurm itself, because it could not start the job; time does not change that.
_NOT_LAUNCHED = re.compile(
    r"launch[ _]failed[ _]requeued[ _]held|JobHoldMaxRequeue|MaxRequeue", re.I
)
# The controller's message some seconds after PartitionConfig.
_NOT_PERMITTED = re.compile(
    r"Job's[ _](?:account|QOS)[ _]not[ _]permitted[ _]to[ _]use[ _]this[ _]partition.*", re.I
)
_ABOUT = (  # a field of `Keys`, by the words of a reason
    (re.compile("Wall|Time|Minutes"), "time"),
    (re.compile("GRES|Gres"), "gpus"),
    (re.compile("Cpu|CPU"), "cpus"),
    (re.compile("Mem"), "memory"),
    (re.compile("Node"), "nodes"),
    (re.compile("Jobs"), "jobs"),
)


def never_runs(reason: str) -> bool:
    """Whether the job cannot run with this configuration, however long it waits."""
    return (
        reason in _NEVER
        or _PER_JOB.fullmatch(reason) is not None
        or _NOT_LAUNCHED.fullmatch(reason) is not None
        or _NOT_PERMITTED.fullmatch(reason) is not None
    )


def limits_the_user(reason: str) -> bool:
    """Whether it waits for other jobs of its user to end."""
    return _PER_USER.fullmatch(reason) is not None


def limits_the_group(reason: str) -> bool:
    """Whether it waits for other jobs of its account or QoS, which may hold what it asks for."""
    return _PER_GROUP.fullmatch(reason) is not None


def explained(reason: str, job: str, keys: Keys = OF_SWARM) -> str:
    """A reason with its explanation, unless it only means waiting for one's turn. `job` are the ids
    that wait, separated by commas; `keys` are those by which the user changes it.
    """
    means = _NEVER.get(reason, _WAITS.get(reason, ""))
    if _PUT_BACK.fullmatch(reason):
        means = _HELD
    elif _NOT_LAUNCHED.fullmatch(reason):
        means = _HELD_BY_SLURM
    elif _NOT_PERMITTED.fullmatch(reason):
        means = "choose another {partition}, {account} or {qos}"
    elif _PER_JOB.fullmatch(reason):
        change = next((f"{{{key}}}" for about, key in _ABOUT if about.search(reason)), "")
        means = f"a limit of the QoS or the account for one job: change {change or _ASKED}"
    return f"{reason}: {means.format(job=job, **keys._asdict())}" if means else reason


def counted(waiting: Iterable[tuple[str, str]]) -> str:
    """How many jobs wait, and why, each reason once; from pairs of a job and its reason."""
    jobs = [*waiting]
    count = quantity(len(jobs), "job waits", "jobs wait")
    by_reason: dict[str, list[str]] = {}
    for job, reason in jobs:
        if reason:
            by_reason.setdefault(reason, []).append(job)
    if not by_reason:
        return f"{count}, Slurm has not said for what"
    # Separated by commas, as scontrol takes several: releasing one of them only would not help.
    why = (explained(reason, ",".join(by_reason[reason])) for reason in sorted(by_reason))
    return f"{count} ({'; '.join(why)})"


_GPUS = "backend.gres says how GPUs are asked for: none, or a template such as gpu:a100:{n}."
_MEMORY = (
    "backend.endpoint.mem, backend.mem (whole nodes) and memory_gb say what --mem is: empty, it is "
    "not written."
)
_NODES = (
    "No node of the partition has all that is asked for: compare gpus_per_replica, gpus_per_node, "
    "backend.gres, cpus_per_task and memory_gb with `scontrol show node`."
)
_PARTITION = (
    "backend.partition and backend.endpoint.partition name partitions of this cluster: `sinfo` "
    "lists them."
)
_ACCOUNT = (
    "backend.account is an account of yours that may use the partition: "
    "`sacctmgr show associations user=$USER` lists them."
)
_QOS = "backend.qos is one that account and partition allow: `sacctmgr show qos` lists them."
_ADVICE = (
    # Names of keys are matched first: names of partitions and accounts contain words such as gpu.
    (re.compile("invalid partition", re.IGNORECASE), _PARTITION),
    (re.compile("invalid account", re.IGNORECASE), _ACCOUNT),
    (re.compile("invalid qos", re.IGNORECASE), _QOS),
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
    """The keys of the configuration that a refusal is about, as far as its words show."""
    return next((hint for pattern, hint in _ADVICE if pattern.search(said)), _ELSE)


def advice_for_job(said: str) -> str:
    """The flags of `job submit` that the refusal of a job with its own allocation is about."""
    return next((hint for pattern, hint in _OF_JOB if pattern.search(said)), _ELSE_OF_JOB)
