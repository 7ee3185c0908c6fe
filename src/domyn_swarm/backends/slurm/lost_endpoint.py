"""Brings back an endpoint that Slurm does not: with `requeue: false`, or where it refuses to; and
one whose job failed, a few times: what is wrong may be its node, or be wrong everywhere.

The replicas' tasks look for it: who else still runs then? The first to claim a lost endpoint
submits its successor, and no other.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from urllib.parse import urlsplit

from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.states import BROKEN, LOST, SlurmJob
from domyn_swarm.backends.slurm.tagged import tagged
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths

_log = get_logger(__name__)

_LOOK_S = 5.0
_CONNECT_S = 3.0
_GONE_S = 20.0  # not reached for so long; Slurm acts itself where it may
_ASK_S = 30.0  # then Slurm is asked, ever more seldom: an endpoint may wait for its turn for hours
_ASK_MAX_S = 600.0
_MOST_FAILURES = 3
_FAILURES_COUNT_S = 3600.0


class LostEndpoint:
    """Looks from one task, whenever it is called and it is time. An endpoint that is not reached
    for `gone_s` may be lost.
    """

    def __init__(self, paths: SwarmPaths, gone_s: float = _GONE_S) -> None:
        self._paths = paths
        self._gone_s = gone_s
        self._reached_at = time.monotonic()
        self._next_look = 0.0
        self._next_question = 0.0
        self._rest_s = _ASK_S

    def look(self) -> None:
        """Submit the endpoint's script again if it was lost. Raises nothing."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        if self._reached():
            self._reached_at, self._rest_s = now, _ASK_S
        elif now - self._reached_at >= self._gone_s and now >= self._next_question:
            self._next_question = now + self._rest_s * random.uniform(1.0, 1.5)  # noqa: S311
            self._rest_s = min(2 * self._rest_s, _ASK_MAX_S)
            try:
                self._bring_back()
            except (PlatformError, OSError, ValueError, KeyError) as error:
                _log.warning("cannot look for the endpoint now: %s", error)

    def _reached(self) -> bool:
        try:  # plain JSON: a task does without the models that readers of addresses have
            address = json.loads(self._paths.endpoint.read_text())
            place = urlsplit(address["collector_url"] or "")
            socket.create_connection((place.hostname or "", place.port or 0), _CONNECT_S).close()
        except (OSError, ValueError, KeyError):
            return False
        return True

    def _bring_back(self) -> None:
        tag = json.loads(self._paths.endpoint_spec.read_text())["tag"]
        slurm = Slurm()
        seen = [one.job for one in tagged(slurm.queue().values(), tag) if one.kind == "endpoint"]
        if not seen or any(not job.over for job in seen):
            return
        last = seen[-1]
        if last.state in LOST or (last.state in BROKEN and self._failures() < _MOST_FAILURES):
            self._succeed(slurm, last)

    def _failures(self) -> int:
        """How many that failed have had successors lately."""
        pattern = self._paths.endpoint_successor("*")
        since = time.time() - _FAILURES_COUNT_S
        return sum(
            claim.read_text() in BROKEN and claim.stat().st_mtime > since
            for claim in pattern.parent.glob(pattern.name)
        )

    def _succeed(self, slurm: Slurm, lost: SlurmJob) -> None:
        claim = self._paths.endpoint_successor(lost.id)
        try:
            descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return
        _log.warning("the endpoint's job %s is gone: it %s", lost.id, lost.observation.detail)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(lost.state)
            _log.info("its successor is %s", slurm.submit(self._paths.endpoint_script))
        except (PlatformError, OSError):  # another time, whoever it is
            claim.unlink(missing_ok=True)
            raise
