"""Repairs what a crash left behind: parts are adopted by their tag, or the swarm is recorded as
stopped; and stops swarms.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from domyn_swarm.backends.endpoint.view import read_ended
from domyn_swarm.backends.protocols import PlatformPart
from domyn_swarm.claims import is_held, release
from domyn_swarm.errors import PlatformError, StateError, SwarmError, SwarmNotFound, SwarmReplaced
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Reach, SwarmPhase
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.probing import Phase
from domyn_swarm.state import SwarmRecord, SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm, rehydrate
from domyn_swarm.swarm.swarm_folder import note_end, script_failure
from domyn_swarm.swarm.whereabouts import is_elsewhere, reach

_log = get_logger(__name__)


def reconcile(store: SwarmStore, record: SwarmRecord) -> SwarmRecord:
    """The record, updated to the platform's state.

    Parts that carry the tag are attached; a swarm of which nothing is left, and that no command is
    bringing up any more, is recorded as stopped. If the platform cannot be asked, or the swarm runs
    on another host or cluster, the record stays.
    """
    if not record.phase.live:
        return record
    try:
        where = reach(record)
        if where is Reach.HERE:
            return _reconciled(store, record)
        if where is Reach.OVER:
            why = f"{record.phase.value}, then ended: its host was restarted"
            store.set_stopped(record.tag, why)
            return store.swarm(record.name)
    except PlatformError as error:
        _log.warning("the parts of %s cannot be listed: %s", record.name, error.message)
        return record
    except (SwarmNotFound, SwarmReplaced):  # by another program, meanwhile
        return record
    return record


def _reconciled(store: SwarmStore, record: SwarmRecord) -> SwarmRecord:
    swarm = rehydrate(record)
    known = {part.platform_id for part in swarm.handle.parts}
    if record.phase is SwarmPhase.LAUNCHING and not all_recorded(swarm):
        adopted = [part for part in _found(swarm) if part.platform_id not in known]
        for part in adopted:
            _log.info("adopting %s %d of %s", part.kind, part.index, record.name)
        if adopted:
            store.attach_parts(record.tag, [part.model_dump(mode="json") for part in adopted])
        record = store.swarm(record.name)
        swarm = rehydrate(record)
    seen = swarm.backend.probe(swarm.handle)
    if seen.phase is not Phase.STOPPED or being_launched(swarm) or swarm.backend.find(swarm.handle):
        return record
    ended = read_ended(swarm.paths, record.tag)
    why = f"{record.phase.value}, then ended: {seen.detail}"
    if (failure := script_failure(swarm.paths)) is not None:
        why = f"{why}; {failure[0]}"
    if ended is not None:
        why = f"ended itself: {ended.reason}" if ended.by == "itself" else ended.reason
    store.set_stopped(record.tag, why)
    return store.swarm(record.name)


def all_recorded(swarm: LiveSwarm) -> bool:
    """Whether the launch recorded all its parts: then there is nothing to search for."""
    kinds = [part["kind"] for part in swarm.record.parts]
    return "endpoint" in kinds and kinds.count("replica") >= swarm.plan.launched_replicas


def _found(swarm: LiveSwarm) -> list[PlatformPart]:
    return [part for handle in swarm.backend.find(swarm.handle) for part in handle.parts]


# -- which process brings it up --------------------------------------------------------------


def being_launched(swarm: LiveSwarm) -> bool:
    """Whether the process that brings the swarm up still lives, as far as can be determined from
    here. It claims the swarm before the record exists, so that no other process writes off a swarm
    of which nothing runs *yet*.
    """
    return is_held(swarm.paths.launcher(swarm.record.tag))


def launchers(paths: SwarmPaths) -> list[Path]:
    """The claims in a swarm's folder, for any tag, of living processes."""
    return [path for path in paths.root.glob("launcher-*.json") if is_held(path)]


def clear_launchers(paths: SwarmPaths) -> None:
    """Remove the claims of launches that were killed."""
    for path in paths.root.glob("launcher-*.json"):
        if not is_held(path):
            release(path)


MAY_SERVE = (SwarmPhase.LAUNCHING, SwarmPhase.READY)


def why_lost(swarm: LiveSwarm) -> str | None:
    """Why a swarm's endpoint will never answer again, though its record says that it is up or
    coming up; None: it may, as far as is known here.
    """
    record = swarm.record
    if record.phase not in MAY_SERVE or is_elsewhere(record):
        return None
    if record.phase is SwarmPhase.LAUNCHING and (being_launched(swarm) or not all_recorded(swarm)):
        return None  # its endpoint may not have been started yet
    return swarm.backend.lost(swarm.handle)


def check_not_lost(swarm: LiveSwarm, refused: str) -> None:
    """Refuse an operation on a swarm that does not serve and will not; `refused` says what is not
    possible.

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
    """The error for a swarm that has no endpoint now."""
    name, phase = swarm.record.name, swarm.record.phase
    coming = phase is SwarmPhase.LAUNCHING
    hint = f"`domyn-swarm wait {name}` returns once it is ready." if coming else ""
    return StateError(
        f"The swarm {name} is {phase.value} and has no endpoint{' yet' if coming else ''}.",
        hint=hint or f"See `domyn-swarm status {name}`.",
    )


def anew(name: str, phase: SwarmPhase) -> str:
    """The command after which the swarm serves again."""
    up = "domyn-swarm up -c FILE"
    if phase is SwarmPhase.STOPPED:
        return f"Bring it up: {up}"
    return f"Stop it with `domyn-swarm down {name}`, then bring it up again: {up}"


STOPPED_BY_DOWN = "`domyn-swarm down` stopped it"


def stop(store: SwarmStore, swarm: LiveSwarm) -> None:
    """End all of a swarm that is recorded as stopping, verify it, and record it as stopped. If that
    is interrupted the record says so: nothing continues it by itself.

    Raises:
        PlatformError: something still runs.
    """
    tag, name = swarm.record.tag, swarm.record.name
    try:
        swarm.backend.delete(swarm.handle)
    except BaseException as error:
        why = error.message if isinstance(error, SwarmError) else f"{error!r}."
        left = (
            f"`down` was interrupted, and parts of it may still run: {why} "
            f"Run `domyn-swarm down {name}`."
        )
        with contextlib.suppress(StateError):  # the first error says more
            store.set_phase(tag, SwarmPhase.STOPPING, left)
        raise
    note_end(swarm)
    store.set_stopped(tag, STOPPED_BY_DOWN)


def may_be_left(swarm: LiveSwarm) -> bool:
    """Whether parts of a swarm that is recorded as stopped may still run, as far as can be
    determined.
    """
    try:
        return reach(swarm.record) is Reach.HERE and bool(swarm.backend.find(swarm.handle))
    except SwarmError:
        return False
