"""`SwarmService`: every operation on swarms, once, without printing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domyn_swarm.backends.endpoint.view import ReplicaEvent, read_history
from domyn_swarm.backends.platforms import serving_backend
from domyn_swarm.errors import ConfigError, PlatformError, StateError, SwarmError, SwarmNotFound
from domyn_swarm.model import SwarmPhase
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.services.requests import (
    DownResult,
    EndpointInfo,
    PlanReport,
    UpRequest,
    UpResult,
)
from domyn_swarm.state import SwarmRecord, SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm, rehydrate
from domyn_swarm.swarm.job_records import live_address
from domyn_swarm.swarm.launch import Launch, prepare
from domyn_swarm.swarm.lifecycle import OnChange, SwarmLifecycle
from domyn_swarm.swarm.pruning import write_off_swarm
from domyn_swarm.swarm.reconcile import reconcile
from domyn_swarm.swarm.snapshot import SwarmSnapshot
from domyn_swarm.swarm.submitter import JobSubmitter
from domyn_swarm.swarm.survey import asked_snapshots, jobs_of, snapshot_of, take_snapshot
from domyn_swarm.swarm.whereabouts import is_elsewhere

if TYPE_CHECKING:
    from domyn_swarm.swarm.campaign import CampaignRehearsal

_PROBES_AT_ONCE = 16


class SwarmService:
    """The operations that commands, the live view and the SDK use."""

    def __init__(self, store: SwarmStore | None = None) -> None:
        self._given = store

    @property
    def _store(self) -> SwarmStore:
        """The state database, opened on first use: a plan needs none."""
        if self._given is None:
            self._given = SwarmStore.open()
        return self._given

    @staticmethod
    def prepare(request: UpRequest) -> Launch:
        """The launch of a configuration, for `report` to show and for `up` to start. Starts
        nothing, and opens no database.

        Raises:
            ConfigError: the file, a flag, or the layout is wrong.
        """
        from domyn_swarm.config import load

        loaded = load(
            request.config,
            overrides=request.overrides,
            name=request.name,
            replicas=request.replicas,
        )
        return prepare(loaded.config)

    @staticmethod
    def report(launch: Launch, *, test: bool = False) -> PlanReport:
        """A launch in full; with `test` the platform is asked whether it would accept it.

        Raises:
            PlatformError: the platform would refuse it, or cannot be asked.
        """
        from domyn_swarm.config.units import time_limits_s

        plan, scripts, backend = launch.plan, launch.scripts, serving_backend(launch.plan.backend)
        gpus = plan.layout.replicas * plan.layout.gpus_per_replica
        limit = plan.backend_options.get("time_limit")
        hours = math.inf if limit is None else time_limits_s(limit)[1] / 3600
        return PlanReport(
            plan=plan,
            gpus=gpus,
            gpu_hours=None if hours == math.inf else gpus * hours,
            engine_command=launch.context.serving_spec.argv,
            scripts=dict(scripts.texts),
            test=tuple(one.detail for one in backend.rehearse(plan, scripts)) if test else None,
        )

    def rehearse(
        self, request: UpRequest, assumed: Mapping[str, Any], *, history: Path | None = None
    ) -> CampaignRehearsal:
        """Run a campaign on a swarm's configuration in virtual time. Starts nothing.

        Args:
            request: the swarm.
            assumed: fields of `Assumptions`; the others follow from the swarm.
            history: past jobs of the site, as `printed.HISTORY` prints them: how long they waited,
                and how often they were preempted or lost their nodes.

        Raises:
            ConfigError: the file, a flag, or the layout is wrong; the history cannot be read.
        """
        from domyn_swarm.config.units import time_limits_s
        from domyn_swarm.swarm.campaign import (
            Alternative,
            Assumptions,
            CampaignRehearsal,
            refuse_impossible,
            rules_of,
            variations,
        )
        from domyn_swarm.swarm.campaign_simulation import rehearse

        launch = self.prepare(request)
        plan = launch.plan
        limits_s = time_limits_s(plan.backend_options.get("time_limit", "0"))
        limits = None if math.inf in limits_s else limits_s
        known: dict[str, Any] = {
            "replicas": plan.layout.replicas,
            "gpus_per_replica": plan.layout.gpus_per_replica,
            "limit_s": limits,
            "job_limit_s": None if limits is None else limits[1],
        }
        past = {} if history is None else _of_history(history)
        try:
            given = Assumptions.model_validate({**known, **past, **assumed})
        except ValueError as error:
            raise ConfigError(f"Nothing can be rehearsed so: {error}") from None
        rules = rules_of(plan, launch.context)
        refuse_impossible(given, rules)
        remarks = []
        if plan.elastic is not None:
            remarks.append(
                f"{plan.name} is elastic: {given.replicas} replicas are rehearsed, from the begin "
                "to the end"
            )
        return CampaignRehearsal(
            remarks=tuple(remarks),
            assumptions=given,
            result=rehearse(given, rules),
            alternatives=tuple(
                Alternative.of(words, rehearse(assumed, ruled))
                for words, assumed, ruled in variations(given, rules)
            ),
        )

    def starts(self, swarm: LiveSwarm, counts: Sequence[int | None]) -> list[str | None]:
        """The scheduler's estimate of when it would start so many replicas, as a swarm of their own
        (`sbatch --test-only`), or its reason against it. None: there is no scheduler, or that many
        replicas are up.
        """
        if swarm.plan.backend != "slurm":
            return [None] * len(counts)
        return [
            None
            if count is None or count <= swarm.plan.layout.replicas
            else self._start(swarm.paths.config, count)
            for count in counts
        ]

    def _start(self, config: Path, replicas: int) -> str:
        from domyn_swarm.backends.slurm.printed import start_time

        try:
            launch = self.prepare(UpRequest(config=config, replicas=replicas))
            starts = self.report(launch, test=True).test or ()
        except SwarmError as error:
            return error.message
        of_replicas = [one for one in starts if one.startswith("replica")] or list(starts)
        said = of_replicas[0].partition(": ")[2] if of_replicas else "-"
        return start_time(said) or said

    def up(
        self,
        launch: Launch,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
    ) -> UpResult:
        """Bring a swarm up, or wait for the one of that name and configuration that is coming up;
        see `SwarmJoining.up`. `timeout_s` covers everything, the queue included.
        """
        from domyn_swarm.swarm.joining import SwarmJoining, Waiting

        waiting = Waiting(wait=wait, timeout_s=timeout_s, on_change=on_change)
        swarm, launched = SwarmJoining(self._store).up(launch, waiting)
        ready = wait or swarm.record.phase is SwarmPhase.READY
        return _up_result(swarm, ready=ready, launched=launched)

    def wait(
        self,
        name: str | None,
        *,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
    ) -> UpResult:
        """Wait until a swarm is ready, the only live one if no name is given; see
        `SwarmJoining.wait`.
        """
        from domyn_swarm.swarm.joining import SwarmJoining, Waiting

        waiting = Waiting(timeout_s=timeout_s, on_change=on_change)
        swarm = SwarmJoining(self._store).wait(name or self.only_live(), waiting)
        return _up_result(swarm, ready=True, launched=False)

    def status(self, name: str | None) -> SwarmSnapshot:
        """A swarm's present state, including its jobs; the only live one if no name is given.

        Raises:
            SwarmNotFound: there is none of that name.
            StateError: no name was given, and not exactly one swarm is live.
        """
        record = self._store.swarm(name or self.only_live())
        swarm, look = SwarmLifecycle(self._store).looked_at(record)
        jobs = jobs_of(swarm.record, self._store.jobs(swarm.record.name))
        records = JobSubmitter(self._store).refresh_all(jobs)
        snapshot = take_snapshot(swarm, asked_snapshots(records), look=look)
        from domyn_swarm.services.usage import UsageService

        used = UsageService(self._store).quick(swarm.record.tag)
        return snapshot.model_copy(update={"usage": used})

    def history(self, name: str) -> tuple[ReplicaEvent, ...]:
        """The changes of a swarm's replicas since it was launched, the oldest first; the newest
        2,000, and none if its collector does not answer or is not reached from here.

        Raises:
            SwarmNotFound: there is none of that name.
        """
        record = self._store.swarm(name)
        if is_elsewhere(record):
            return ()
        return read_history(SwarmPaths(Path(record.swarm_dir)), record.created_at)

    def only_live(self) -> str:
        """The name of the only live swarm.

        Raises:
            StateError: there is none, or there are several.
        """
        records = self._store.swarms()
        if len(records) > 1:  # some may have ended without a record
            records = [one for one in map(self._now, records) if one.phase.live]
        names = [record.name for record in records]
        if not names:
            raise StateError("No swarm is live.", hint="Bring one up: domyn-swarm up -c FILE")
        if len(names) > 1:
            raise StateError(
                f"{len(names)} swarms are live: {', '.join(names)}.", hint="Name one of them."
            )
        return names[0]

    def list(self, probe: bool = True) -> list[SwarmSnapshot]:
        """Every live swarm; with `probe` in its present state, all asked at once."""
        records = self._store.swarms()
        if not probe:
            return [snapshot_of(record) for record in records]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_PROBES_AT_ONCE, thread_name_prefix="probe") as pool:
            seen = pool.map(self._look, records)
        return [snapshot for snapshot in seen if snapshot.phase.live]

    def _look(self, record: SwarmRecord) -> SwarmSnapshot:
        swarm, look = SwarmLifecycle(self._store).looked_at(record)
        return take_snapshot(swarm, look=look)

    def _now(self, record: SwarmRecord) -> SwarmRecord:
        return reconcile(self._store, record)

    def down(
        self, names: Sequence[str], *, all_swarms: bool = False, forget: bool = False
    ) -> tuple[DownResult, ...]:
        """Stop swarms, one after the other; one that cannot be stopped does not keep the others.

        With `forget` nothing is stopped: a swarm that cannot be asked, because its host or cluster
        no longer exists, is recorded as stopped, with its jobs.

        Raises:
            SwarmNotFound: a name is unknown; nothing was stopped.
        """
        chosen = [record.name for record in self._store.swarms()] if all_swarms else names
        for name in chosen:
            self._store.swarm(name)
        return tuple(self._down_one(name, forget) for name in dict.fromkeys(chosen))

    def _down_one(self, name: str, forget: bool) -> DownResult:
        try:
            if forget:
                write_off_swarm(self._store, name)
            else:
                SwarmLifecycle(self._store).down(name)
        except SwarmNotFound:
            raise
        except SwarmError as error:
            return DownResult(name=name, stopped=False, error=error.message, hint=error.hint)
        except OSError as error:
            return DownResult(name=name, stopped=False, error=f"{error}.")
        from domyn_swarm.services.usage import UsageService

        UsageService(self._store).keep(self._store.swarm(name).tag)
        return DownResult(name=name, stopped=not forget, forgotten=forget)

    def scale(self, name: str, replicas: int) -> SwarmSnapshot:
        """Set the number of replicas of a swarm; see `SwarmLifecycle.scale`."""
        return take_snapshot(SwarmLifecycle(self._store).scale(name, replicas))

    def endpoint(self, name: str | None) -> EndpointInfo:
        """How to reach a swarm.

        Raises:
            StateError: it has no endpoint now.
            RunsElsewhere: its endpoint is not reached from here.
        """
        record = self._now(self._store.swarm(name or self.only_live()))
        swarm = rehydrate(record)
        address = live_address(swarm)
        return EndpointInfo(
            name=record.name,
            url=address.url,
            model=swarm.plan.model,
            key_file=swarm.paths.api_key,
            metrics_url=f"{address.collector_url}/metrics" if address.collector_url else None,
            metrics_key_file=swarm.paths.metrics_key if address.collector_url else None,
        )

    def scrape_config(self, name: str | None) -> dict[str, Any]:
        """The configuration of Prometheus (`prometheus.yml`), once for this swarm and all others of
        its home: the watched files contain the present address of each.

        Raises:
            StateError: the platform watches the replicas, so there is nothing to scrape.
        """
        swarm = rehydrate(self._store.swarm(name or self.only_live()))
        if swarm.plan.backend == "lepton":
            raise StateError(
                f"{swarm.record.name} runs on Lepton and has no metrics of ours.",
                hint="See Lepton's own dashboards.",
            )
        folder = swarm.plan.metrics.discovery_dir or swarm.paths.scrape_targets
        scraped = {
            "job_name": "domyn-swarm",
            "honor_labels": True,
            "authorization": {"credentials_file": str(swarm.paths.metrics_key)},
            "file_sd_configs": [{"files": [str(folder / "domyn-swarm-*.json")]}],
        }
        return {"scrape_configs": [scraped]}


def _up_result(swarm: LiveSwarm, *, ready: bool, launched: bool) -> UpResult:
    address = None
    with contextlib.suppress(PlatformError):  # it is up all the same
        address = swarm.backend.address(swarm.handle)
    return UpResult(
        name=swarm.record.name,
        endpoint=None if address is None else address.url,
        ready=ready,
        launched=launched,
        swarm_dir=swarm.paths.root,
    )


def _of_history(path: Path) -> dict[str, Any]:
    """What past jobs show: how long they waited, how often one was preempted or lost its node.

    Raises:
        ConfigError: the file cannot be read, or contains no job.
    """
    from domyn_swarm.backends.slurm.printed import HISTORY, history

    try:
        jobs = history(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}.", hint=f"Write it with: {HISTORY} > past") from None
    hours = sum(one.lasted_s for one in jobs) / 3600
    if not hours:
        raise ConfigError(f"{path} contains no job that has run.", hint=f"Write it with: {HISTORY}")
    taken = sum(one.state in ("PREEMPTED", "NODE_FAIL", "REQUEUED") for one in jobs)
    return {"wait_s": tuple(one.waited_s for one in jobs), "preempted_per_h": taken / hours}
