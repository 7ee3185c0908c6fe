"""What the live view looks at and acts through: the services, or a recording of them."""

from __future__ import annotations

from typing import Protocol

from domyn_swarm.model import FailureGroup
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.logs import swarm_logs
from domyn_swarm.services.requests import LogRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.swarm.snapshot import SwarmSnapshot

_LOG_LINES = 500


class Source(Protocol):
    """One swarm, as the view needs it. Methods block; the view calls them on threads."""

    def look(self) -> SwarmSnapshot:
        """The swarm as it is now.

        Raises:
            SwarmError: it cannot be looked at.
        """

    def failures(self, job_id: str) -> tuple[FailureGroup, ...]:
        """A job's failed rows by signature, the commonest first.

        Raises:
            SwarmError: its files cannot be read.
        """

    def log(self, replica: int | None) -> list[str]:
        """The last lines of a replica's log, or of the endpoint's.

        Raises:
            SwarmError: there is none.
        """

    def scale(self, replicas: int) -> None:
        """Have it run so many replicas.

        Raises:
            SwarmError: it cannot.
        """

    def cancel(self, job_id: str) -> None:
        """Stop one job.

        Raises:
            SwarmError: it still runs.
        """


class Services:
    """The swarm of that name, through the services."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._swarms = SwarmService()
        self._jobs = JobService()

    def look(self) -> SwarmSnapshot:
        """See `Source`."""
        return self._swarms.status(self._name)

    def failures(self, job_id: str) -> tuple[FailureGroup, ...]:
        """See `Source`."""
        return self._jobs.failures(job_id).groups

    def log(self, replica: int | None) -> list[str]:
        """See `Source`."""
        request = LogRequest(
            name=self._name,
            source="endpoint" if replica is None else "replica",
            replica=replica,
            last_lines=_LOG_LINES,
        )
        return list(swarm_logs(request))

    def scale(self, replicas: int) -> None:
        """See `Source`."""
        self._swarms.scale(self._name, replicas)

    def cancel(self, job_id: str) -> None:
        """See `Source`."""
        self._jobs.cancel(job_id)
