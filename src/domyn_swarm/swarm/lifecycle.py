"""Brings swarms up and down. The record is written before the first side effect, each id as it is
returned.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import NoReturn

from domyn_swarm.backends import ledger
from domyn_swarm.backends.checks import refuse_uninstalled
from domyn_swarm.backends.endpoint.endpoint_spec import configured_replicas
from domyn_swarm.backends.platforms import serving_backend
from domyn_swarm.backends.protocols import PartRecorder, PlatformPart
from domyn_swarm.claims import RENEW_S, claim, release, renew
from domyn_swarm.errors import (
    LaunchError,
    PlatformError,
    StateError,
    SwarmError,
    SwarmExists,
    SwarmNotFound,
    words_of,
)
from domyn_swarm.model import SwarmPhase, utc_now
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.planning.plan import lay_out
from domyn_swarm.probing import Deadline, Observation, Phase, wait_until
from domyn_swarm.state import SwarmRecord, SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm, rehydrate
from domyn_swarm.swarm.launch import Launch, deployment_context
from domyn_swarm.swarm.readiness import SwarmLook, launch_error, look_at, readiness
from domyn_swarm.swarm.reconcile import (
    STOPPED_BY_DOWN,
    check_not_lost,
    clear_launchers,
    may_be_left,
    reconcile,
    stop,
    why_lost,
)
from domyn_swarm.swarm.swarm_folder import withdraw_metrics, write_launch_files
from domyn_swarm.swarm.whereabouts import is_elsewhere, refuse_elsewhere, refuse_taken

OnChange = Callable[[Observation], None]
Interrupted = Callable[[], bool]


class SwarmLifecycle:
    """Brings swarms up and down, and restores them from the database."""

    def __init__(self, store: SwarmStore) -> None:
        self._store = store

    def up(
        self,
        launch: Launch,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        keep_interrupted: bool = True,
        interrupted: Interrupted | None = None,
    ) -> LiveSwarm:
        """Bring a swarm up as it was prepared; with `wait` return when `min_ready` replicas answer.

        If it is interrupted, running parts stay, and a record that `status` and `down` understand;
        without `keep_interrupted` it stops what it started. Where no signal can arrive (in a
        thread), `interrupted` returns whether it should end in this way.

        Raises:
            ConfigError: no such engine is here.
            SwarmExists: the name is a live one's.
            LaunchError: it did not come up; what was started has been stopped.
            PlatformError: the scheduler could not be asked for the scripts; the swarm could not be
                started, or could not be stopped afterwards.
        """
        plan, context = launch.plan, launch.context
        refuse_uninstalled(plan)
        if launch.scripts.unasked is not None:  # with whole nodes they would differ
            raise launch.scripts.unasked
        self._make_room(plan.name)
        paths = SwarmPaths.of(plan.home_directory, plan.name)
        try:
            claim(paths.launcher(context.tag))
        except OSError as error:
            raise _in_words(plan.name, error) from error
        try:
            swarm = self._record(launch)
            try:
                write_launch_files(swarm, launch.config)
                swarm = self._launch(swarm, launch)
                if not wait:
                    return swarm
                return self.await_ready(swarm, timeout_s, on_change, interrupted)
            except Exception as error:  # noqa: BLE001 - what was started must not outlive any
                self.fail(swarm, error)
            except KeyboardInterrupt:
                if not keep_interrupted:
                    self._give_up(swarm, LaunchError("Interrupted."))
                raise
        finally:
            release(paths.launcher(context.tag))

    def _record(self, launch: Launch) -> LiveSwarm:
        """Record the intent, before any side effect but the folder in which the record is."""
        now, plan = utc_now(), launch.plan
        record = SwarmRecord(
            name=plan.name,
            tag=launch.context.tag,
            backend=plan.backend,
            phase=SwarmPhase.LAUNCHING,
            detail="",
            swarm_dir=str(SwarmPaths.of(plan.home_directory, plan.name).root),
            plan_json=plan.model_dump_json(),
            parts=(),
            location=serving_backend(plan.backend).location(plan.backend_options),
            created_at=now,
            updated_at=now,
        )
        self._store.create_swarm(record)
        return rehydrate(record)

    def _make_room(self, name: str) -> None:
        """Refuse a name that is taken. A record of which nothing runs any more is no obstacle;
        running parts of a swarm that was written off are, as they could not be found under the next
        tag.
        """
        try:
            record = self._store.swarm(name)
        except SwarmNotFound:
            return
        record = reconcile(self._store, record)
        if record.phase.live:
            refuse_taken(record, why_lost(rehydrate(record)))
        elif may_be_left(rehydrate(record)):
            raise SwarmExists(
                f"The swarm {name} is recorded as stopped, but parts of it still run.",
                hint=f"Stop it with `domyn-swarm down {name}`, or choose another --name.",
            )

    def _launch(self, swarm: LiveSwarm, launch: Launch) -> LiveSwarm:
        recorder = self._recorder(launch.context.tag)
        swarm.backend.launch(launch.plan, launch.context, launch.scripts, recorder)
        return self.still_wanted(swarm)

    def _recorder(self, tag: str) -> PartRecorder:
        def attach(*parts: PlatformPart) -> None:
            self._store.attach_parts(tag, [part.model_dump(mode="json") for part in parts])

        return attach

    def still_wanted(self, swarm: LiveSwarm) -> LiveSwarm:
        """The swarm with its present record, unless it failed or was stopped meanwhile.

        Raises:
            LaunchError: it did, or somebody has.
        """
        record = self._store.swarm(swarm.record.name)
        wanted = record.phase in (SwarmPhase.LAUNCHING, SwarmPhase.READY)
        over = record.phase in (SwarmPhase.FAILED, SwarmPhase.STOPPED)
        if record.tag == swarm.record.tag and over and record.detail != STOPPED_BY_DOWN:
            raise LaunchError(
                f"{swarm.record.name} did not come up: {record.detail}",
                hint=f"See the logs under {swarm.paths.root / 'logs'}.",
            )
        if record.tag != swarm.record.tag or not wanted:
            raise LaunchError(
                f"{swarm.record.name} was stopped while it was coming up.",
                hint="`down` was run meanwhile; nothing of it is left.",
            )
        return swarm.with_record(record)

    def await_ready(
        self,
        swarm: LiveSwarm,
        timeout_s: float | None,
        on_change: OnChange | None,
        interrupted: Interrupted | None = None,
        *,
        renews: bool = True,
    ) -> LiveSwarm:
        """Return when `min_ready` replicas of a launched swarm answer; stop nothing. `renews`:
        whether this process holds the claim that it brings the swarm up.

        Raises:
            LaunchError: it has failed, time is up, or somebody stopped it.
        """
        look = readiness(swarm)
        launcher, renew_at = swarm.paths.launcher(swarm.record.tag), 0.0 if renews else math.inf

        def probe() -> Observation:
            nonlocal renew_at
            if interrupted is not None and interrupted():
                raise KeyboardInterrupt
            if time.monotonic() >= renew_at:  # a swarm may wait in a queue for days
                renew(launcher)
                renew_at = time.monotonic() + RENEW_S
            return look()

        deadline = Deadline(swarm.plan.wait_endpoint_s, overall_s=timeout_s)
        seen = wait_until(probe, deadline=deadline, every_s=0.3, on_change=on_change)
        swarm = self.still_wanted(swarm)
        if seen.phase is Phase.READY:
            self._store.set_phase(swarm.record.tag, SwarmPhase.READY)
            return self.still_wanted(swarm)  # it may have been stopped at this moment
        raise launch_error(swarm, seen)

    def fail(self, swarm: LiveSwarm, error: Exception) -> NoReturn:
        """Stop what was started, whatever went wrong; raise the cause, and what is left."""
        name = swarm.record.name
        from domyn_swarm.backends.notification import notify

        known = error if isinstance(error, SwarmError) else _in_words(name, error)
        self._give_up(swarm, known)
        notify(swarm.paths.notify_url, "swarm_failed", swarm=name, message=known.message)
        if isinstance(error, OSError):
            raise known from error
        if error is not known:  # a bug: its traceback says more
            error.add_note(str(known))
        raise error

    def _give_up(self, swarm: LiveSwarm, error: SwarmError) -> None:
        """Stop what was started, whatever the record says by now: `down` may have verified that
        nothing ran before the last part was started. If stopping fails, the record stays and the
        error says so.
        """
        tag, name = swarm.record.tag, swarm.record.name
        with contextlib.suppress(StateError):  # it is being stopped, or was
            record = self._store.swarm(name)
            swarm = swarm.with_record(record) if record.tag == tag else swarm
            self._store.set_phase(tag, SwarmPhase.FAILED, error.message)
        try:
            swarm.backend.delete(swarm.handle)
        except Exception as stuck:  # noqa: BLE001 - whatever it is: what runs on must be known
            words = stuck.message if isinstance(stuck, SwarmError) else f"{stuck!r}."
            left = f"Parts of it may still run: {words} Run `domyn-swarm down {name}`."
            error.hint = f"{error.hint} {left}".strip()
            return
        with contextlib.suppress(StateError):  # then the next command records it
            self._store.set_stopped(tag, error.message)

    def down(self, name: str, tag: str | None = None) -> LiveSwarm:
        """Stop a swarm and verify that no part of it runs. Idempotent. With `tag` only the swarm
        that carries it: another one that has taken its name meanwhile is left alone.

        Raises:
            SwarmNotFound: there is none of that name.
            RunsElsewhere: it can only be stopped from another host or cluster.
            PlatformError: something still runs; the record stays.
        """
        record = reconcile(self._store, self._store.swarm(name))
        if tag not in (None, record.tag):
            return rehydrate(record)
        refuse_elsewhere(record, "stop it", f"`domyn-swarm down {name} --forget` writes it off")
        swarm = rehydrate(record)
        if record.phase.live and self._store.set_phase(record.tag, SwarmPhase.STOPPING):
            stop(self._store, swarm)
        elif not record.phase.live and may_be_left(swarm):  # written off too early, or forgotten
            swarm.backend.delete(swarm.handle)
        stopped = {"phase": SwarmPhase.STOPPED}  # here, or meanwhile by another program
        swarm = swarm.with_record(record.model_copy(update=stopped))
        clear_launchers(swarm.paths)
        withdraw_metrics(swarm)
        return swarm

    def scale(self, name: str, replicas: int) -> LiveSwarm:
        """Set the number of replicas of a live swarm: more join as they become ready, those beyond
        it drain and end. The method waits for neither; a repeated call completes an interrupted
        one.

        Raises:
            SwarmNotFound: there is none of that name.
            RunsElsewhere: it can only be scaled from another host or cluster.
            StateError: it is not live, it is elastic, or a replica that is wanted again has not
                ended yet.
            SubmissionUnknown: the replicas may start; the new number is recorded.
            PlatformError: a replica could not be started; as many are wanted as before.
        """
        swarm = self.attach(name)
        refuse_elsewhere(swarm.record, "scale it")
        check_not_lost(swarm, "cannot be scaled")
        if (elastic := swarm.plan.elastic) is not None:
            raise StateError(
                f"{name} is elastic: it runs {elastic.least} to {swarm.plan.layout.replicas} "
                "replicas, as many as there is work for.",
                hint="For a fixed number, or other bounds, change `replicas` in its configuration, "
                f"`domyn-swarm down {name}`, and bring it up again.",
            )
        layout = lay_out(
            replicas, swarm.plan.layout.gpus_per_replica, swarm.plan.layout.gpus_per_node
        )
        smaller = min(swarm.plan.min_ready, replicas)
        plan = swarm.plan.model_copy(update={"layout": layout, "min_ready": smaller})
        tag = swarm.record.tag
        write_private(swarm.paths.plan, plan.model_dump_json(indent=2))
        try:
            context = deployment_context(plan, tag)
            swarm.backend.scale(plan, context, swarm.handle, self._recorder(tag))
        except BaseException as error:
            if configured_replicas(swarm.paths) == replicas:  # the endpoint uses it from now on
                self._store.set_plan(tag, plan.model_dump_json())
            else:
                write_private(swarm.paths.plan, swarm.plan.model_dump_json(indent=2))
            if isinstance(error, OSError):
                raise PlatformError(
                    f"{name} cannot be scaled. {words_of(error)}",
                    hint="Check that disk: permissions, quota, space.",
                ) from error
            raise
        self._store.set_plan(tag, plan.model_dump_json())
        with contextlib.suppress(OSError):  # then the wait for a replica is not in the ledger
            ledger.want(tag, replicas)
        return rehydrate(self._store.swarm(name))

    def attach(self, name: str) -> LiveSwarm:
        """A swarm by its name, in its present state.

        A launching swarm that has become ready meanwhile is recorded as ready.

        Raises:
            SwarmNotFound: there is none of that name.
        """
        return self.current(self._store.swarm(name))

    def current(self, record: SwarmRecord) -> LiveSwarm:
        """The same for a record that was read before."""
        swarm = rehydrate(reconcile(self._store, record))
        if swarm.record.phase is not SwarmPhase.LAUNCHING or is_elsewhere(swarm.record):
            return swarm
        return self._as_seen(swarm, look_at(swarm))

    def looked_at(self, record: SwarmRecord) -> tuple[LiveSwarm, SwarmLook | None]:
        """The swarm, with the observation on which its state is based; None: it is over, or runs
        elsewhere.
        """
        swarm = rehydrate(reconcile(self._store, record))
        if not swarm.record.phase.live or is_elsewhere(swarm.record):
            return swarm, None
        look = look_at(swarm)
        return self._as_seen(swarm, look), look

    def _as_seen(self, swarm: LiveSwarm, look: SwarmLook) -> LiveSwarm:
        """The swarm, recorded as ready if it has become so."""
        launching = swarm.record.phase is SwarmPhase.LAUNCHING
        if not (launching and look.together.phase is Phase.READY):
            return swarm
        if not self._store.set_phase(swarm.record.tag, SwarmPhase.READY):
            return swarm
        return swarm.with_record(swarm.record.model_copy(update={"phase": SwarmPhase.READY}))


def _in_words(name: str, error: Exception) -> LaunchError:
    """The `SwarmError` for an unexpected exception while a swarm was brought up."""
    if not isinstance(error, OSError):
        return LaunchError(f"{name} did not come up: {error!r}.")
    words = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    hint = "Check that its folder can be written: permissions, quota, space."
    return LaunchError(f"{name} did not come up: {words}.", hint=hint)
