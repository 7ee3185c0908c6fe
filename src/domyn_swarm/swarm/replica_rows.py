"""A replica as `status` shows it: what its watchdog reported last, and what its platform has in its
place, which says why one that reports nothing, or has ended, is not there.
"""

from __future__ import annotations

from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.model import FINAL_REPLICA_STATES, ReplicaReport, ReplicaState
from domyn_swarm.probing import Observation, Phase
from domyn_swarm.swarm.readiness import age_s, is_stale, not_ready_yet
from domyn_swarm.swarm.snapshot import ReplicaSnapshot

_REPORTED = set(ReplicaSnapshot.field_names()) & set(ReplicaReport.field_names())


def reported(
    view: CollectorView | None,
    report: ReplicaReport | None,
    index: int,
    *,
    unheard: bool = False,
) -> ReplicaSnapshot:
    """By its watchdog's last report. `unheard`: nobody takes its reports any more, nor sends
    requests there.
    """
    if view is None or report is None:
        return ReplicaSnapshot(index=index, state=ReplicaState.PENDING, stale=False)
    seen_s, sample_s = age_s(view, report), report.sample_age_s
    shown = report.model_copy(update={"reason": not_ready_yet(report)})
    return ReplicaSnapshot(
        index=index,
        stale=unheard or is_stale(view, report),
        last_seen_s=seen_s,
        figures_age_s=None if sample_s is None else seen_s + sample_s,
        **shown.model_dump(include=_REPORTED),
    )


def placed(one: ReplicaSnapshot, place: Observation | None, anew: str) -> ReplicaSnapshot:
    """The same with what its platform says of its place, unless its watchdog is heard: a look at a
    platform may be older than a report. What ended a replica that failed, its watchdog knows.

    Args:
        one: by its report.
        place: what the platform has there; None: it was not asked.
        anew: what to do to have a replica again that is over.
    """
    heard = one.last_seen_s is not None
    ended = one.state in FINAL_REPLICA_STATES
    if place is None or (heard and not one.stale and not ended):
        return one
    if place.phase is Phase.QUEUED:
        return _changed(one, ReplicaState.PENDING, place.detail)
    if place.phase.terminal and one.state is not ReplicaState.FAILED:
        without_a_word = heard and not ended  # its watchdog was killed
        failed = place.phase is Phase.FAILED or without_a_word
        state = ReplicaState.FAILED if failed else ReplicaState.EXITED
        return _changed(one, state, f"{place.detail}; {anew}")
    if place.phase is Phase.READY and not ended:
        silent = "reports nothing any more" if heard else "has not reported yet"
        return one.model_copy(update={"reason": f"{place.detail}; its watchdog {silent}"})
    return one


def _changed(one: ReplicaSnapshot, state: ReplicaState, reason: str) -> ReplicaSnapshot:
    return one.model_copy(update={"state": state, "reason": reason, "stale": False})
