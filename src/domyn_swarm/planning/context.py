"""What `ServingBackend.launch` is given beside the plan."""

from __future__ import annotations

from typing import Any, Literal

from domyn_swarm.model import Record
from domyn_swarm.record import field


class FailurePattern(Record):
    """A known cause of an engine's death and how to see it in a log."""

    pattern: str  # regular expression, searched line by line from the end of the log
    cause: str
    hint: str
    retryable: bool  # False: restarting cannot help, the watchdog gives up at once


class StartPhase(Record):
    """A line of an engine's log that tells how far its start is."""

    phase: Literal["pull", "load", "compile", "warm-up"]
    pattern: str  # regular expression


class FirstRequest(Record):
    """The real request that an engine must answer (any status below 500) before `ready`."""

    path: str
    body: dict[str, Any]


class ServingSpec(Record):
    """One replica's server as a command.

    In argv the exact tokens `{python}`, `{host}` and `{port}` are placeholders, replaced by
    `str.replace` and never by `str.format`, so that braces in users' arguments survive:
    `{python}` by the backend from `DeploymentContext.interpreter`, `{replica}`, where it is the
    whole of an argument, by the replica's number, the others on the node.
    Of a replica on several nodes argv runs on the first; `{node_port}` is where the others reach
    it. They run `follower_argv`, with `{head}`, `{port}` and `{rank}` (1, 2, …) filled in.
    """

    argv: tuple[str, ...]
    follower_argv: tuple[str, ...] = ()
    companion_argv: tuple[str, ...] = ()  # beside argv, kept running in the same way
    env: dict[str, str] = field(default_factory=dict)
    key_env: str | None  # environment variable that carries the clients' key into the engine
    health_path: str = "/health"
    metrics_path: str | None = "/metrics"
    running_metric: str | None = None  # gauge: requests being served
    waiting_metric: str | None = None  # gauge: requests queued in the engine
    prompt_tokens_metric: str | None = None  # counter: tokens read
    generated_tokens_metric: str | None = None  # counter: tokens written
    kv_cache_metric: str | None = None  # gauge: how full the KV cache is, 0 to 1
    preemptions_metric: str | None = None  # counter: requests put back for want of KV memory
    progress_metrics: tuple[str, ...] = ()  # counters that move when tokens come out
    first_request: FirstRequest | None = None
    failure_patterns: tuple[FailurePattern, ...] = ()
    start_phases: tuple[StartPhase, ...] = ()  # of several that match a line, the last one counts
    max_num_seqs: int | None = None  # how many requests run at once, when the engine is told

    @property
    def reported_metrics(self) -> dict[str, str]:
        """What a watchdog tells of the engine's metrics: field of its report → name of the metric.

        What the engine does not have is left out.
        """
        fields = {
            "requests_running": self.running_metric,
            "requests_waiting": self.waiting_metric,
            "prompt_tokens": self.prompt_tokens_metric,
            "generated_tokens": self.generated_tokens_metric,
            "kv_cache_usage": self.kv_cache_metric,
        }
        return {field: name for field, name in fields.items() if name is not None}


class DeploymentContext(Record):
    """Everything a backend needs to launch a plan, beyond the plan itself. No secrets."""

    tag: str  # carried by everything this swarm starts; unique per swarm, not per name
    serving_spec: ServingSpec
    shared_env: dict[str, str] = field(default_factory=dict)  # for all our programs on the nodes
    timeout_s: float
    interpreter: str  # the Python that our programs run with
    extras: dict[str, str] = field(default_factory=dict)  # backend-specific, validated by it
