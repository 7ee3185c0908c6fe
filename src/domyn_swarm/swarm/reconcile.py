"""What a crash left behind: found by the swarm's tag, adopted or written off.

A killed `up` may have started things that it never recorded. The tag is on all of them, so the
platform can be asked.
"""

from __future__ import annotations

import json

from domyn_swarm.backends.base import Part
from domyn_swarm.backends.endpoint.view import read_ended
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Location, ProcessId, Reach, SwarmPhase
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Phase
from domyn_swarm.state import SwarmRecord, SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm, rehydrate
from domyn_swarm.swarm.whereabouts import reach

_log = get_logger(__name__)


def reconcile(store: SwarmStore, record: SwarmRecord) -> SwarmRecord:
    """The record as the platform sees it.

    Parts that carry the tag are attached; a swarm of which nothing is left, and that nobody is
    bringing up any more, is stopped. When the platform cannot be asked, or the swarm
    runs on another host or cluster, the record stays.
    """
    if not record.phase.live:
        return record
    try:
        where = reach(record)
        if where is Reach.HERE:
            return _reconciled(store, record)
    except PlatformError as error:
        _log.warning("%s cannot be looked for: %s", record.name, error.message)
        return record
    if where is Reach.ELSEWHERE:
        return record
    store.set_stopped(record.tag, f"{record.phase.value}, then ended: its host was restarted")
    return store.swarm(record.name)


def _reconciled(store: SwarmStore, record: SwarmRecord) -> SwarmRecord:
    swarm = rehydrate(record)
    known = {part.platform_id for part in swarm.handle.parts}
    if record.phase is SwarmPhase.LAUNCHING and not all_recorded(swarm):
        for part in _found(swarm):
            if part.platform_id not in known:
                _log.info("adopting %s %d of %s", part.kind, part.index, record.name)
                store.attach_part(record.tag, part.model_dump(mode="json"))
        record = store.swarm(record.name)
        swarm = rehydrate(record)
    seen = swarm.backend.probe(swarm.handle)
    if seen.phase is not Phase.STOPPED or being_launched(swarm) or swarm.backend.find(swarm.handle):
        return record
    ended = read_ended(swarm.paths, record.tag)
    why = f"{record.phase.value}, then ended: {seen.detail}"
    store.set_stopped(record.tag, why if ended is None else f"ended itself: {ended.reason}")
    return store.swarm(record.name)


def all_recorded(swarm: LiveSwarm) -> bool:
    """Whether whoever launched it got to the end: then there is nothing to look for."""
    kinds = [part.kind for part in swarm.handle.parts]
    return "endpoint" in kinds and kinds.count("replica") >= swarm.plan.layout.replicas


def _found(swarm: LiveSwarm) -> list[Part]:
    return [part for handle in swarm.backend.find(swarm.handle) for part in handle.parts]


# -- who is bringing it up ---------------------------------------------------------------------


def claim_launch(paths: SwarmPaths, tag: str) -> None:
    """Write down that this process is bringing the swarm up: before there is a record of it, so
    that nobody writes off a swarm of which nothing runs *yet*.
    """
    from domyn_swarm.identity import this_host, this_process

    document = {"location": this_host().model_dump(), **this_process().model_dump()}
    write_private(paths.launcher(tag), json.dumps(document))


def being_launched(swarm: LiveSwarm) -> bool:
    """Whether the process that brings the swarm up still lives, as far as is known from here."""
    try:
        launcher = json.loads(swarm.paths.launcher(swarm.record.tag).read_text())
        location = Location.model_validate(launcher["location"])
        process = ProcessId(pid=launcher["pid"], started_at=launcher["started_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    from domyn_swarm.identity import host_reach, still_there

    where = host_reach(location)
    return where is Reach.ELSEWHERE or (where is Reach.HERE and still_there(process))
