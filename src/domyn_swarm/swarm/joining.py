"""A swarm of a name that is up already, or that another command brings up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domyn_swarm.errors import SwarmNotFound
from domyn_swarm.model import SwarmPhase
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.lifecycle import Interrupted, OnChange, SwarmLifecycle
from domyn_swarm.swarm.lost import why_lost
from domyn_swarm.swarm.reconcile import all_recorded, being_launched
from domyn_swarm.swarm.whereabouts import is_elsewhere, refuse_taken

if TYPE_CHECKING:
    from domyn_swarm.config import DomynLLMSwarmConfig


def complete(
    lifecycle: SwarmLifecycle,
    config: DomynLLMSwarmConfig,
    *,
    wait: bool = True,
    timeout_s: float | None = None,
    on_change: OnChange | None = None,
    interrupted: Interrupted | None = None,
) -> LiveSwarm:
    """As `SwarmLifecycle.up`, whatever became of an earlier one: a swarm of that name that is up or
    coming up is taken as it is; one that was launched in part, or is failing or stopping, is
    stopped and launched anew.

    Raises:
        LaunchError: it did not come up; unless somebody else launches it, it has been stopped.
        PlatformError: it could not be started, or what was there could not be stopped.
    """
    try:
        swarm = lifecycle.attach(str(config.name))
    except SwarmNotFound:
        return lifecycle.up(
            config, wait=wait, timeout_s=timeout_s, on_change=on_change, interrupted=interrupted
        )
    if is_elsewhere(swarm.record):
        refuse_taken(swarm.record)
    phase = SwarmPhase.FAILED if why_lost(swarm) else swarm.record.phase
    going = phase is SwarmPhase.LAUNCHING and (being_launched(swarm) or all_recorded(swarm))
    if phase is SwarmPhase.READY or (going and not wait):
        return swarm
    if going:
        return lifecycle.join(swarm, timeout_s, on_change, interrupted)
    lifecycle.down(swarm.record.name)
    return lifecycle.up(
        config, wait=wait, timeout_s=timeout_s, on_change=on_change, interrupted=interrupted
    )
