"""How a swarm is stopped, and what is left where that breaks off."""

from __future__ import annotations

import contextlib

from domyn_swarm.errors import StateError, SwarmError
from domyn_swarm.model import Reach, SwarmPhase
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.folder import note_end
from domyn_swarm.swarm.whereabouts import reach

STOPPED_BY_DOWN = "`domyn-swarm down` stopped it"


def stop(store: SwarmStore, swarm: LiveSwarm) -> None:
    """End all of a swarm that is recorded as stopping, verify that, and record it as stopped. Where
    that breaks off the record says so: nobody goes on with it by itself.

    Raises:
        PlatformError: something still runs.
    """
    tag, name = swarm.record.tag, swarm.record.name
    try:
        swarm.backend.delete(swarm.handle)
    except BaseException as error:
        why = error.message if isinstance(error, SwarmError) else f"{error!r}."
        left = f"`down` broke off, and some of it may run on: {why} Run `domyn-swarm down {name}`."
        with contextlib.suppress(StateError):  # the first error says more
            store.set_phase(tag, SwarmPhase.STOPPING, left)
        raise
    note_end(swarm)
    store.set_stopped(tag, STOPPED_BY_DOWN)


def may_be_left(swarm: LiveSwarm) -> bool:
    """Whether something runs of a swarm that is recorded as stopped, as far as can be known."""
    try:
        return reach(swarm.record) is Reach.HERE and bool(swarm.backend.find(swarm.handle))
    except SwarmError:
        return False
