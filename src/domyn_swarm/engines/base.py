"""What an engine is: text in, text out, and how to run and read one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from domyn_swarm.model import Record
from domyn_swarm.planning.context import FailurePattern, ServingSpec
from domyn_swarm.planning.plan import DeploymentPlan


class Diagnosis(Record):
    """Why an engine ended, read from the end of its log."""

    cause: str
    hint: str
    retryable: bool
    line: str  # the line of the log it was read from


class Engine(Protocol):
    """One LLM server program."""

    name: str
    failure_patterns: Sequence[FailurePattern]

    def serving_spec(self, plan: DeploymentPlan) -> ServingSpec:
        """The command, environment, readiness path and metric names of one replica.

        Raises:
            ConfigError: the model or an option cannot be served by this engine on this machine.
        """


def diagnose(patterns: Sequence[FailurePattern], log_tail: str) -> Diagnosis | None:
    """The first pattern (in their order) that some line of the log's tail matches, or None."""
    lines = log_tail.splitlines()
    for known in patterns:
        compiled = re.compile(known.pattern)
        for line in reversed(lines):
            if compiled.search(line):
                return Diagnosis(
                    cause=known.cause,
                    hint=known.hint,
                    retryable=known.retryable,
                    line=line.strip()[:500],
                )
    return None
