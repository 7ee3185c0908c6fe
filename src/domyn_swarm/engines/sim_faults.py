"""The faults that the simulator is configured to have, and its record of requests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from domyn_swarm.engines.sim_openai import READY_PROMPT
from domyn_swarm.engines.sim_options import ErrorRule, SimOptions

CRASH_EXIT_CODE = 13


class Received(NamedTuple):
    """A request as it arrived."""

    path: str
    body: dict[str, Any]
    prompt: str  # the part of the body that selects faults and answer


class Faults:
    """Counts requests and selects the fault of each. The watchdog's own request has none."""

    def __init__(self, options: SimOptions) -> None:
        """Raises OSError if the record cannot be written."""
        self._options = options
        self._requests = 0
        self._applied: Counter[tuple[int, str]] = Counter()
        self._record: int | None = None
        if options.record is not None:
            path = Path(options.record)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._record = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def arrive(self, prompt: str) -> bool:
        """Count a request. True if it must never be completed. May end the process instead."""
        if prompt == READY_PROMPT:
            return False
        self._requests += 1
        crash_after = self._options.crash_after_requests
        if crash_after is not None and self._requests > crash_after:
            self.crash()
        freeze_after = self._options.freeze_after_requests
        return freeze_after is not None and self._requests > freeze_after

    def crash(self) -> None:
        """End the process at once."""
        print("simulated crash", file=sys.stderr, flush=True)  # noqa: T201 - the engine's log
        os._exit(CRASH_EXIT_CODE)

    def rule(self, prompt: str) -> ErrorRule | None:
        """The first rule that applies to this request."""
        if prompt == READY_PROMPT:
            return None
        for number, rule in enumerate(self._options.errors):
            if re.search(rule.match, prompt) and _chosen(prompt, rule.rate):
                self._applied[number, prompt] += 1
                if rule.times is None or self._applied[number, prompt] <= rule.times:
                    return rule
        return None

    def record(self, request: Received, status: int | None) -> None:
        """Append a request and the status of its answer; None if the client got no answer."""
        if self._record is not None and request.prompt != READY_PROMPT:
            entry = {
                "prompt": request.prompt,
                "status": status,
                "path": request.path,
                "body": request.body,
            }
            os.write(self._record, json.dumps(entry).encode() + b"\n")


def _chosen(prompt: str, rate: float) -> bool:
    """Whether a prompt belongs to the share `rate` of all prompts. Deterministic."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < rate * 2**64
