"""Joins a swarm of a name that is up already, or that another command is bringing up."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from domyn_swarm.claims import claim, release
from domyn_swarm.errors import LaunchError, NotReady, SwarmExists, SwarmNotFound, WaitTimedOut
from domyn_swarm.model import SwarmPhase
from domyn_swarm.planning.plan import differences
from domyn_swarm.probing import Deadline, Observation, Phase, wait_until
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.launch import Launch
from domyn_swarm.swarm.lifecycle import Interrupted, OnChange, SwarmLifecycle
from domyn_swarm.swarm.readiness import launch_error, readiness
from domyn_swarm.swarm.reconcile import MAY_SERVE, all_recorded, anew, being_launched, why_lost
from domyn_swarm.swarm.whereabouts import is_elsewhere, refuse_elsewhere, refuse_taken

_LOOK_EVERY_S = 0.3
_SHOWN = 6  # differences that an error names


@dataclass(frozen=True)
class Waiting:
    """How a command waits for a swarm; see `SwarmLifecycle.up`."""

    wait: bool = True
    timeout_s: float | None = None
    on_change: OnChange | None = None
    interrupted: Interrupted | None = None


class Outcome(NamedTuple):
    """A swarm, and whether this command launched it."""

    swarm: LiveSwarm
    launched: bool


class SwarmJoining:
    """Uses a swarm that is up or coming up, and launches one that is not: nothing is started twice,
    however many commands ask for the same swarm at the same time.
    """

    def __init__(self, store: SwarmStore) -> None:
        self._store = store
        self._lifecycle = SwarmLifecycle(store)

    def up(self, launch: Launch, waiting: Waiting) -> Outcome:
        """As `SwarmLifecycle.up`. A swarm of that name and configuration that is up is used, and
        one that is coming up is waited for. One whose launch was interrupted, because its command
        was killed, is stopped and launched again.

        Raises:
            SwarmExists: a live swarm has the name and another configuration, or has failed.
            LaunchError: it did not come up; unless somebody else launches it, it has been stopped.
            PlatformError: it could not be started, or what was there could not be stopped.
        """

        def refused(swarm: LiveSwarm) -> bool:
            lost = why_lost(swarm)
            if lost is not None or swarm.record.phase not in (*MAY_SERVE, SwarmPhase.STOPPED):
                refuse_taken(swarm.record, lost)
            if swarm.record.phase.live:
                self._refuse_other(swarm, launch)
            return False

        return self._taken_or_launched(launch, waiting, refused)

    def complete(self, launch: Launch, waiting: Waiting) -> Outcome:
        """As `up`, for any earlier swarm of the name: one that is up or coming up is used whatever
        its configuration; one that was launched in part, has failed or is stopping is stopped and
        launched again.

        Raises:
            LaunchError: it did not come up; unless somebody else launches it, it has been stopped.
            PlatformError: it could not be started, or what was there could not be stopped.
        """

        def useless(swarm: LiveSwarm) -> bool:
            return swarm.record.phase not in MAY_SERVE or why_lost(swarm) is not None

        return self._taken_or_launched(launch, waiting, useless)

    def wait(self, name: str, waiting: Waiting) -> LiveSwarm:
        """Wait until a swarm is ready. If it does not come up its parts are stopped, as by `up`,
        unless the command that launched it still runs: then that one does so.

        Raises:
            SwarmNotFound: there is none of that name.
            RunsElsewhere: it can only be waited for on another host or cluster.
            LaunchError: it did not come up, or has ended.
            WaitTimedOut: the time is over; the swarm keeps coming up.
        """
        swarm = self._lifecycle.attach(name)
        refuse_elsewhere(swarm.record, "wait for it")
        phase, why = swarm.record.phase, why_lost(swarm)
        if why is not None:
            raise LaunchError(
                f"The swarm {name} has failed: {why}.", hint=anew(name, SwarmPhase.FAILED)
            )
        if phase not in MAY_SERVE:
            detail = f": {swarm.record.detail.rstrip('.')}" if swarm.record.detail else ""
            raise LaunchError(f"The swarm {name} is {phase.value}{detail}.", hint=anew(name, phase))
        if phase is SwarmPhase.READY:
            return _ready_again(swarm, waiting)
        joined = None if _launched_in_part(swarm) else self._joined(swarm, waiting, keeps=True)
        if joined is None:
            raise LaunchError(
                f"The swarm {name} was launched in part: the `up` that did so has ended.",
                hint="The same `up` again completes it; "
                f"`domyn-swarm down {name}` stops what was started.",
            )
        return joined

    # -- using an existing swarm -----------------------------------------------------------------

    def _taken_or_launched(
        self,
        launch: Launch,
        waiting: Waiting,
        replaces: Callable[[LiveSwarm], bool],
    ) -> Outcome:
        """`replaces`: whether a recorded swarm is stopped first; an error if that is not
        allowed.
        """
        while True:
            there = self._recorded(launch.name)
            if there is not None and is_elsewhere(there.record):
                refuse_taken(there.record)
            if there is not None and (replaces(there) or _launched_in_part(there)):
                self._lifecycle.down(there.record.name, there.record.tag)
            elif there is not None and there.record.phase.live:
                taken = self._taken(there, waiting)
                if taken is not None:
                    return Outcome(taken, launched=False)
                continue  # the launching command ended before all was started
            try:
                return Outcome(self._launched(launch, waiting), launched=True)
            except SwarmExists:  # another command was faster, or parts of an earlier swarm are left
                there = self._recorded(launch.name)
                if there is None or not there.record.phase.live:
                    raise

    def _recorded(self, name: str) -> LiveSwarm | None:
        try:
            return self._lifecycle.attach(name)
        except SwarmNotFound:
            return None

    def _launched(self, launch: Launch, waiting: Waiting) -> LiveSwarm:
        return self._lifecycle.up(
            launch,
            wait=waiting.wait,
            timeout_s=waiting.timeout_s,
            on_change=waiting.on_change,
            interrupted=waiting.interrupted,
        )

    def _taken(self, swarm: LiveSwarm, waiting: Waiting) -> LiveSwarm | None:
        if swarm.record.phase is SwarmPhase.READY or not waiting.wait:
            return swarm
        return self._joined(swarm, waiting)

    def _refuse_other(self, swarm: LiveSwarm, launch: Launch) -> None:
        """Refuse to use a swarm of another configuration than the requested one."""
        wanted, name, phase = launch.plan, swarm.record.name, swarm.record.phase
        if phase is SwarmPhase.READY:  # it applied to the launch, and `scale` may have lowered it
            wanted = wanted.model_copy(update={"min_ready": swarm.plan.min_ready})
        found = differences(swarm.plan, wanted)
        if not found:
            return
        shown = [f"{key} is {there}, not {asked}" for key, (there, asked) in found.items()]
        more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        change = "Stop"
        if phase is SwarmPhase.READY and found.keys() == {"replicas"}:
            size = launch.config.replicas
            change = f"Change that with `domyn-swarm scale {name} {size}`, or stop"
        raise SwarmExists(
            f"A swarm named {name!r} is {phase.value} with another configuration: "
            f"{'; '.join(shown[:_SHOWN])}{more}.",
            hint=f"{change} it with `domyn-swarm down {name}`, or choose another --name.",
        )

    # -- waiting for another command's launch ----------------------------------------------------

    def _joined(
        self, swarm: LiveSwarm, waiting: Waiting, *, keeps: bool = False
    ) -> LiveSwarm | None:
        """The swarm once it is ready; None: the launching command ended before all was started.
        `keeps`: whether the swarm is left alone when `timeout_s` is over.
        """
        left = _TimeLeft(waiting.timeout_s)
        seen = self._await_all_parts(swarm, waiting)
        swarm = self._lifecycle.still_wanted(swarm)
        if seen.phase is Phase.FAILED:
            return None
        if seen.phase is Phase.STARTING:  # the time is over
            late = f"{swarm.record.name} was not ready in time: {seen.detail}."
            raise _time_is_up(swarm, late) if keeps else NotReady(late, hint="It keeps running.")
        with _claimed(swarm) as ours:
            try:
                return self._lifecycle.await_ready(
                    swarm, left.seconds, waiting.on_change, waiting.interrupted, renews=ours
                )
            except Exception as error:
                if keeps and isinstance(error, NotReady) and left.seconds == 0:
                    raise _time_is_up(swarm, error.message) from error
                self._clean_up(swarm, error, ours=ours)
                raise

    def _await_all_parts(self, swarm: LiveSwarm, waiting: Waiting) -> Observation:
        """Wait while another command starts the swarm's parts: with parts missing it looks
        ended.
        """

        def probe() -> Observation:
            if waiting.interrupted is not None and waiting.interrupted():
                raise KeyboardInterrupt
            held = being_launched(swarm)  # asked first: it may end with all parts recorded
            record = self._store.swarm(swarm.record.name)
            if record.tag != swarm.record.tag or record.phase not in MAY_SERVE:
                return Observation(Phase.STOPPED)
            if all_recorded(swarm.with_record(record)):
                return Observation(Phase.READY)
            if not held:
                return Observation(Phase.FAILED)
            return Observation(Phase.STARTING, "another command is starting it")

        def tell(seen: Observation) -> None:
            if waiting.on_change is not None and seen.phase is Phase.STARTING:
                waiting.on_change(seen)

        deadline = Deadline(math.inf, waiting.timeout_s)
        return wait_until(probe, deadline=deadline, every_s=_LOOK_EVERY_S, on_change=tell)

    def _clean_up(self, swarm: LiveSwarm, error: Exception, *, ours: bool) -> None:
        """Stop the parts of a swarm that did not come up, unless another command does."""
        record = self._store.swarm(swarm.record.name)
        is_it = record.tag == swarm.record.tag and record.phase in MAY_SERVE
        if is_it and (ours or not being_launched(swarm)):
            self._lifecycle.fail(swarm, error)


class _TimeLeft:
    def __init__(self, timeout_s: float | None) -> None:
        self._ends_at = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def seconds(self) -> float | None:
        """Seconds of the given time that are left; None: no limit."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())


def _launched_in_part(swarm: LiveSwarm) -> bool:
    """Whether its launch was interrupted: no command starts the missing parts."""
    launching = swarm.record.phase is SwarmPhase.LAUNCHING
    return launching and not being_launched(swarm) and not all_recorded(swarm)


@contextlib.contextmanager
def _claimed(swarm: LiveSwarm) -> Iterator[bool]:
    """Whether this process takes over bringing the swarm up, because the command that launched it
    has ended: of several that wait, one stops a swarm that did not come up.
    """
    launcher = swarm.paths.launcher(swarm.record.tag)
    ours = not being_launched(swarm)
    try:
        if ours:
            with contextlib.suppress(OSError):
                claim(launcher)
        yield ours
    finally:
        if ours:
            release(launcher)


def _ready_again(swarm: LiveSwarm, waiting: Waiting) -> LiveSwarm:
    """Wait for a swarm that was ready before, until enough of its replicas are."""
    seen = wait_until(
        readiness(swarm),
        deadline=Deadline(math.inf, waiting.timeout_s),
        every_s=_LOOK_EVERY_S,
        on_change=waiting.on_change,
    )
    if seen.phase.terminal:
        raise launch_error(swarm, seen)
    if seen.phase is not Phase.READY:
        name = swarm.record.name
        raise _time_is_up(swarm, f"{name} was not ready in time: {seen.detail}.")
    return swarm


def _time_is_up(swarm: LiveSwarm, message: str) -> WaitTimedOut:
    hint = f"It keeps coming up: see `domyn-swarm status {swarm.record.name}`, or wait again."
    return WaitTimedOut(message, hint=hint)
