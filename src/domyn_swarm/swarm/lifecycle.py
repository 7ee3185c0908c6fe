"""Up and down. The record is written before the first side effect, each id as it is returned."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from domyn_swarm import engines, logs
from domyn_swarm.backends.base import Part
from domyn_swarm.backends.notification import notify
from domyn_swarm.errors import (
    LaunchError,
    PlatformError,
    StateError,
    SwarmError,
    SwarmNotFound,
)
from domyn_swarm.model import Reach, SwarmPhase, utc_now
from domyn_swarm.paths import SwarmPaths, private_dir, write_private, write_private_once
from domyn_swarm.planning.context import DeploymentContext
from domyn_swarm.planning.layout import lay_out
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.probing import Deadline, Observation, Phase, wait_until
from domyn_swarm.state import SwarmRecord, SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm, rehydrate, serving_backend
from domyn_swarm.swarm.readiness import launch_error, readiness
from domyn_swarm.swarm.reconcile import all_recorded, being_launched, claim_launch, reconcile
from domyn_swarm.swarm.whereabouts import is_elsewhere, reach, refuse_elsewhere, refuse_taken

if TYPE_CHECKING:
    from domyn_swarm.config import DomynLLMSwarmConfig

OnChange = Callable[[Observation], None]
Interrupted = Callable[[], bool]


class SwarmLifecycle:
    """Brings swarms up and down, and back from the database."""

    def __init__(self, store: SwarmStore) -> None:
        self._store = store

    @staticmethod
    def plan(config: DomynLLMSwarmConfig) -> tuple[DeploymentPlan, DeploymentContext]:
        """What `up` would do. Touches nothing.

        Raises:
            ConfigError: the engine, the model or the layout is not possible here.
        """
        from domyn_swarm.planning.builder import PlanBuilder

        plan = PlanBuilder(config, config.name or _generated_name(config.model)).build()
        context = _context(plan, f"{plan.name}.{secrets.token_hex(6)}")
        serving_backend(plan.backend).scripts(plan, context)  # what cannot be is told at once
        return plan, context

    def up(
        self,
        config: DomynLLMSwarmConfig,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        keep_interrupted: bool = True,
        interrupted: Interrupted | None = None,
    ) -> LiveSwarm:
        """Launch a swarm; with `wait` return when `min_ready` replicas answer.

        Interrupted, it leaves what runs and a record that `status` and `down` understand; without
        `keep_interrupted` it stops what it started. Where no signal can reach it (in a thread),
        `interrupted` says that it shall end so.

        Raises:
            SwarmExists: a live swarm has the name.
            LaunchError: it did not come up; what was started has been stopped.
            PlatformError: it could not be started, or could not be stopped afterwards.
        """
        plan, context = self.plan(config)
        self._make_room(plan.name)
        paths = SwarmPaths.of(plan.home_directory, plan.name)
        claim_launch(paths, context.tag)
        try:
            swarm = self._record(config, plan, context)
            try:
                swarm = self._launch(swarm, context)
                if not wait:
                    return swarm
                return self._await_ready(swarm, timeout_s, on_change, interrupted)
            except SwarmError as error:
                self._give_up(swarm, error)
                name = swarm.record.name
                notify(swarm.paths.notify_url, "swarm_failed", swarm=name, message=error.message)
                raise
            except KeyboardInterrupt:
                if not keep_interrupted:
                    self._give_up(swarm, LaunchError("Interrupted."))
                raise
        finally:
            paths.launcher(context.tag).unlink(missing_ok=True)

    def complete(
        self,
        config: DomynLLMSwarmConfig,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        interrupted: Interrupted | None = None,
    ) -> LiveSwarm:
        """As `up`, whatever became of an earlier one: a swarm of that name that is up or coming up
        is taken as it is; one that was launched in part, or is failing or stopping, is stopped and
        launched anew.

        Raises:
            LaunchError: it did not come up; unless somebody else launches it, it has been stopped.
            PlatformError: it could not be started, or what was there could not be stopped.
        """
        try:
            swarm = self.attach(str(config.name))
        except SwarmNotFound:
            return self.up(
                config, wait=wait, timeout_s=timeout_s, on_change=on_change, interrupted=interrupted
            )
        if is_elsewhere(swarm.record):
            refuse_taken(swarm.record)
        phase = swarm.record.phase
        going = phase is SwarmPhase.LAUNCHING and (being_launched(swarm) or all_recorded(swarm))
        if phase is SwarmPhase.READY or (going and not wait):
            return swarm
        if going:
            return self._join(swarm, timeout_s, on_change, interrupted)
        self.down(swarm.record.name)
        return self.up(
            config, wait=wait, timeout_s=timeout_s, on_change=on_change, interrupted=interrupted
        )

    def _join(
        self,
        swarm: LiveSwarm,
        timeout_s: float | None,
        on_change: OnChange | None,
        interrupted: Interrupted | None,
    ) -> LiveSwarm:
        """Wait for a swarm that somebody launched. When whoever did so is gone, its failure is
        ours to clean up.
        """
        try:
            return self._await_ready(swarm, timeout_s, on_change, interrupted)
        except SwarmError as error:
            if not being_launched(swarm):
                self._give_up(swarm, error)
            raise

    def _record(
        self, config: DomynLLMSwarmConfig, plan: DeploymentPlan, context: DeploymentContext
    ) -> LiveSwarm:
        """The intent, before any side effect but the folder it is written to."""
        from domyn_swarm.config import dump_yaml

        paths = SwarmPaths.of(plan.home_directory, plan.name)
        now = utc_now()
        record = SwarmRecord(
            name=plan.name,
            tag=context.tag,
            backend=plan.backend,
            phase=SwarmPhase.LAUNCHING,
            detail="",
            swarm_dir=str(paths.root),
            plan_json=plan.model_dump_json(),
            parts=(),
            location=serving_backend(plan.backend).location(plan.backend_options),
            created_at=now,
            updated_at=now,
        )
        self._store.create_swarm(record)
        _clear_last_run(paths, context.tag)
        write_private(paths.config, dump_yaml(config))
        write_private(paths.plan, plan.model_dump_json(indent=2))
        write_private(paths.api_key, _chosen_key() or secrets.token_urlsafe(32))
        if config.notify.url:
            write_private(paths.notify_url, config.notify.url)
        write_private(paths.collector_key, secrets.token_urlsafe(32))
        write_private_once(paths.metrics_key, secrets.token_urlsafe(32))
        return rehydrate(record)

    def _make_room(self, name: str) -> None:
        """Refuse a name that is taken; a record of which nothing runs any more is no obstacle."""
        try:
            record = self._store.swarm(name)
        except SwarmNotFound:
            return
        refuse_taken(reconcile(self._store, record))

    def _launch(self, swarm: LiveSwarm, context: DeploymentContext) -> LiveSwarm:
        def attach(part: Part) -> None:
            self._store.attach_part(context.tag, part.model_dump(mode="json"))

        swarm.backend.launch(swarm.plan, context, attach)
        return self._still_wanted(swarm)

    def _still_wanted(self, swarm: LiveSwarm) -> LiveSwarm:
        """The swarm by its record now, unless somebody stopped it meanwhile.

        Raises:
            LaunchError: somebody did.
        """
        record = self._store.swarm(swarm.record.name)
        wanted = record.phase in (SwarmPhase.LAUNCHING, SwarmPhase.READY)
        if record.tag != swarm.record.tag or not wanted:
            raise LaunchError(
                f"{swarm.record.name} was stopped while it was coming up.",
                hint="Somebody ran `down`; nothing of it is left.",
            )
        return swarm.with_record(record)

    def _await_ready(
        self,
        swarm: LiveSwarm,
        timeout_s: float | None,
        on_change: OnChange | None,
        interrupted: Interrupted | None = None,
    ) -> LiveSwarm:
        look = readiness(swarm)

        def probe() -> Observation:
            if interrupted is not None and interrupted():
                raise KeyboardInterrupt
            return look()

        deadline = Deadline(swarm.plan.wait_endpoint_s, overall_s=timeout_s)
        seen = wait_until(probe, deadline=deadline, every_s=0.3, on_change=on_change)
        swarm = self._still_wanted(swarm)
        if seen.phase is Phase.READY:
            self._store.set_phase(swarm.record.tag, SwarmPhase.READY)
            return swarm.with_record(self._store.swarm(swarm.record.name))
        raise launch_error(swarm, seen)

    def _give_up(self, swarm: LiveSwarm, error: SwarmError) -> None:
        """Free what was started, whatever the record says by now: `down` may have verified that
        nothing ran before the last part was started. When freeing fails, the record stays and the
        error says so.
        """
        tag, name = swarm.record.tag, swarm.record.name
        with contextlib.suppress(StateError):  # somebody stops it, or has stopped it
            record = self._store.swarm(name)
            swarm = swarm.with_record(record) if record.tag == tag else swarm
            self._store.set_phase(tag, SwarmPhase.FAILED, error.message)
        try:
            swarm.backend.delete(swarm.handle)
        except PlatformError as stuck:
            error.hint = f"{error.hint} Beware: {stuck.message} Run `down {name}`.".strip()
            return
        self._store.set_stopped(tag, error.message)

    def down(self, name: str) -> LiveSwarm:
        """Stop a swarm and verify that nothing of it runs. Idempotent.

        Raises:
            SwarmNotFound: there is none of that name.
            RunsElsewhere: it can only be stopped from another host or cluster.
            PlatformError: something still runs; the record stays.
        """
        record = reconcile(self._store, self._store.swarm(name))
        refuse_elsewhere(record, "stop it", f"`domyn-swarm down {name} --forget` writes it off")
        swarm = rehydrate(record)
        if record.phase.live:
            self._store.set_phase(record.tag, SwarmPhase.STOPPING)
            swarm.backend.delete(swarm.handle)
            self._store.set_phase(record.tag, SwarmPhase.STOPPED)
            swarm = swarm.with_record(self._store.swarm(name))
        elif _may_be_left(swarm):  # it was written off too early, or forgotten
            swarm.backend.delete(swarm.handle)
        _withdraw_metrics(swarm)
        return swarm

    def scale(self, name: str, replicas: int) -> LiveSwarm:
        """Have a live swarm run so many replicas: more join as they become ready, those beyond
        drain and end. Neither is waited for; doing it again completes what broke off.

        Raises:
            SwarmNotFound: there is none of that name.
            RunsElsewhere: it can only be scaled from another host or cluster.
            StateError: it is not live, or a replica that is wanted again has not ended yet.
            PlatformError: a replica could not be started.
        """
        swarm = self.attach(name)
        refuse_elsewhere(swarm.record, "scale it")
        if swarm.record.phase not in (SwarmPhase.LAUNCHING, SwarmPhase.READY):
            raise StateError(
                f"The swarm {name} is {swarm.record.phase.value} and cannot be scaled.",
                hint="Bring it up: domyn-swarm up -c FILE -r N",
            )
        layout = lay_out(
            replicas, swarm.plan.layout.gpus_per_replica, swarm.plan.layout.gpus_per_node
        )
        smaller = min(swarm.plan.min_ready, replicas)
        plan = swarm.plan.model_copy(update={"layout": layout, "min_ready": smaller})
        tag = swarm.record.tag

        def attach(part: Part) -> None:
            self._store.attach_part(tag, part.model_dump(mode="json"))

        write_private(swarm.paths.plan, plan.model_dump_json(indent=2))
        try:
            swarm.backend.scale(plan, _context(plan, tag), swarm.handle, attach)
        except StateError:
            write_private(swarm.paths.plan, swarm.plan.model_dump_json(indent=2))
            raise
        self._store.set_plan(tag, plan.model_dump_json())
        return rehydrate(self._store.swarm(name))

    def attach(self, name: str) -> LiveSwarm:
        """A swarm by its name, as it is now.

        A launching swarm that has meanwhile become ready is recorded as ready.

        Raises:
            SwarmNotFound: there is none of that name.
        """
        return self.current(self._store.swarm(name))

    def current(self, record: SwarmRecord) -> LiveSwarm:
        """The same for a record that was read before."""
        swarm = rehydrate(reconcile(self._store, record))
        if is_elsewhere(swarm.record):
            return swarm
        if swarm.record.phase is SwarmPhase.LAUNCHING and readiness(swarm)().phase is Phase.READY:
            self._store.set_phase(record.tag, SwarmPhase.READY)
            return swarm.with_record(self._store.swarm(record.name))
        return swarm


def _may_be_left(swarm: LiveSwarm) -> bool:
    """Whether something runs of a swarm that is recorded as stopped, as far as can be known."""
    try:
        return reach(swarm.record) is Reach.HERE and bool(swarm.backend.find(swarm.handle))
    except SwarmError:
        return False


def _context(plan: DeploymentPlan, tag: str) -> DeploymentContext:
    return DeploymentContext(
        tag=tag,
        serving_spec=engines.get(plan.engine).serving_spec(plan),
        shared_env=logs.variables(),
        timeout_s=plan.wait_endpoint_s,
        interpreter=sys.executable,
    )


def _chosen_key() -> str | None:
    """The clients' key when the user brings one; otherwise one is generated."""
    return os.environ.get("DOMYN_SWARM_API_TOKEN") or os.environ.get("VLLM_API_KEY")


def _generated_name(model: str) -> str:
    """A name that says which model it serves and is unlikely to be taken."""
    last = model.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf")
    slug = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:32].strip("-")
    slug = slug if slug[:1].isalpha() else f"m-{slug}".strip("-")
    return f"{slug}-{secrets.token_hex(2)}"


def _clear_last_run(paths: SwarmPaths, tag: str) -> None:
    """A name may be used again: nothing of the last swarm's serving state may be believed."""
    private_dir(paths.root)
    for folder in (paths.endpoint.parent, paths.scripts, paths.api_key.parent, paths.logs):
        shutil.rmtree(folder, ignore_errors=True)
    paths.watchdog_db.unlink(missing_ok=True)
    for launcher in set(paths.root.glob("launcher-*.json")) - {paths.launcher(tag)}:
        launcher.unlink(missing_ok=True)


def _withdraw_metrics(swarm: LiveSwarm) -> None:
    """An endpoint that was killed left its files: it is no target any more, and no alarm."""
    told, name = swarm.plan.metrics, swarm.paths.public_name
    left = [(told.discovery_dir or swarm.paths.scrape_targets) / f"{name}.json"]
    if told.textfile_dir is not None:
        left.append(told.textfile_dir / f"{name}.prom")
    for file in left:
        with contextlib.suppress(OSError):  # of another machine, as a rule
            file.unlink(missing_ok=True)
