"""Swarms that will not serve again: nothing that needs one begins there."""

from __future__ import annotations

from domyn_swarm.errors import StateError
from domyn_swarm.model import SwarmPhase
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.reconcile import all_recorded, being_launched
from domyn_swarm.swarm.whereabouts import is_elsewhere

MAY_SERVE = (SwarmPhase.LAUNCHING, SwarmPhase.READY)


def why_lost(swarm: LiveSwarm) -> str | None:
    """Why nobody will answer at a swarm's endpoint again, though its record says that it is up or
    coming up; None: somebody may, as far as is known here.
    """
    record = swarm.record
    if record.phase not in MAY_SERVE or is_elsewhere(record):
        return None
    if record.phase is SwarmPhase.LAUNCHING and (being_launched(swarm) or not all_recorded(swarm)):
        return None  # its endpoint may not have been started yet
    return swarm.backend.lost(swarm.handle)


def check_not_lost(swarm: LiveSwarm, refused: str) -> None:
    """Refuse what needs a swarm that serves, or will: `refused` says what of it is not possible.

    Raises:
        StateError: it does not and will not.
    """
    name, phase = swarm.record.name, swarm.record.phase
    if phase not in MAY_SERVE:
        raise StateError(
            f"The swarm {name} is {phase.value} and {refused}.", hint=anew(name, phase)
        )
    why = why_lost(swarm)
    if why is not None:
        raise StateError(
            f"The swarm {name} has failed and {refused}: {why}.",
            hint=anew(name, SwarmPhase.FAILED),
        )


def without_endpoint(swarm: LiveSwarm) -> StateError:
    """What is said of a swarm that has no endpoint now."""
    name, phase = swarm.record.name, swarm.record.phase
    coming = phase is SwarmPhase.LAUNCHING
    hint = f"`domyn-swarm wait {name}` returns once it is ready." if coming else ""
    return StateError(
        f"The swarm {name} is {phase.value} and has no endpoint{' yet' if coming else ''}.",
        hint=hint or f"See `domyn-swarm status {name}`.",
    )


def anew(name: str, phase: SwarmPhase) -> str:
    """What to do to have a swarm that serves."""
    up = "domyn-swarm up -c FILE"
    if phase is SwarmPhase.STOPPED:
        return f"Bring it up: {up}"
    return f"Stop it with `domyn-swarm down {name}`, then bring it up again: {up}"
