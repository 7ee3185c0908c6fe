"""The two protocols a platform implements, and the records they exchange.

Membership is proven by the conformance suite (`tests/conformance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from domyn_swarm.backends.checks import Check
from domyn_swarm.backends.endpoint.view import CollectorView, EndpointAddress
from domyn_swarm.errors import PlatformError, StateError
from domyn_swarm.model import (
    JobHandle,
    JobStatus,
    Location,
    ProcessId,
    Reach,
    Record,
    utc_now,
)
from domyn_swarm.paths import JobPaths
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan, JobResources
from domyn_swarm.probing import Observation
from domyn_swarm.record import field

if TYPE_CHECKING:
    from domyn_swarm.backends.rehearsal import Rehearsal


ASLEEP = "asleep: its first replica starts with the first request or job"


class PlatformPart(Record):
    """One thing the platform runs for a swarm."""

    kind: Literal["endpoint", "replica"]
    index: int = 0  # of the replica
    platform_id: str  # pid, scheduler job id, deployment name
    process: ProcessId | None = None


class ServingHandle(Record):
    """How to find everything a swarm started, from any process."""

    schema_version: Literal[1] = 1
    platform: str
    tag: str
    swarm_dir: str
    parts: tuple[PlatformPart, ...] = ()
    location: Location | None = None  # None: not recorded, taken for here
    # Of an elastic swarm: so few replicas it may have. They are no parts of the handle: the
    # endpoint program starts and ends them, and `find` knows those that there are.
    least_replicas: int | None = None


@dataclass(frozen=True)
class LaunchScripts:
    """What a platform is given for a launch: what is shown of it is what is submitted."""

    texts: Mapping[str, str]  # by the names of their files; none where the platform takes none
    replicas_per_task: int = 1  # that share one task of the scheduler
    unasked: PlatformError | None = None  # why the scheduler did not say how it gives nodes


class PartRecorder(Protocol):
    """Called the moment the platform returned ids, before anything else is started: with all parts
    that one answer of the platform started, so that they are recorded together.
    """

    def __call__(self, *parts: PlatformPart) -> None:
        """Attach the parts to the swarm's record."""


class Located(Protocol):
    """What both sides of a platform say of the places where things run. Processes of another host
    and jobs of another cluster are not seen from here, which does not mean that they have ended.
    """

    def location(self, options: Mapping[str, Any]) -> Location:
        """Where something would run that is started now; `options`: the backend section.

        Raises:
            ConfigError: no workspace is configured.
            PlatformError: the platform cannot be asked.
        """

    def reach(self, location: Location | None) -> Reach:
        """What can be known from here of something that was started there; None: not recorded,
        taken for here.

        Raises:
            PlatformError: the platform cannot be asked now.
        """


class ServingBackend(Located, Protocol):
    """An endpoint with replicas behind it."""

    supervised: bool  # an endpoint program of ours looks after the swarm, and can end it

    def launch(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        scripts: LaunchScripts,
        record: PartRecorder,
    ) -> ServingHandle:
        """Start the endpoint and every replica; return without waiting for readiness. `scripts`:
        those of this plan and context; they are submitted as they are.

        Raises:
            PlatformError: something could not be started; what was started has been recorded.
        """

    def scripts(self, plan: DeploymentPlan, ctx: DeploymentContext) -> LaunchScripts:
        """What `launch` submits. Writes nothing and starts nothing. A scheduler is asked how it
        gives its nodes; where it does not answer, `unasked` says why, and jobs share them.

        Raises:
            ConfigError: the platform cannot serve the plan.
        """

    def rehearse(self, plan: DeploymentPlan, scripts: LaunchScripts) -> tuple[Check, ...]:
        """Ask the platform whether it would take this; its words, and what it warns of. Starts
        nothing.

        Raises:
            PlatformError: it would not, or it cannot be asked.
        """

    def checks(self, plan: DeploymentPlan) -> Iterator[Check]:
        """What `doctor` looks at on this platform. Starts nothing, raises nothing."""

    def checks_on_node(
        self, plan: DeploymentPlan, ctx: DeploymentContext, wish: Rehearsal
    ) -> Iterator[Check]:
        """What a program of ours reports from a node, where it runs for a moment.

        Raises:
            ConfigError: the platform has no nodes of which that could be asked.
            PlatformError: it could not be started, or the platform cannot be asked.
            OSError: the swarms' folder cannot be written to.
        """

    def scale(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        handle: ServingHandle,
        record: PartRecorder,
    ) -> None:
        """Bring what runs to the size of a plan that differs in it alone; idempotent.

        Replicas of the plan that neither run nor wait are started, those beyond it are told to
        drain; neither is waited for.

        Raises:
            StateError: a replica that is wanted again has not ended yet.
            SubmissionUnknown: replicas may come yet; the endpoint follows the plan.
            PlatformError: something could not be started; the endpoint follows what it did before.
        """

    def probe(self, handle: ServingHandle) -> Observation:
        """What the platform says of the whole: queued, starting (it runs), stopped, failed.

        READY means that the endpoint program and enough replica processes run, not that they
        serve. A handle of something that never was is STOPPED.
        """

    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        """The same for each part, keyed by `PlatformPart.platform_id`."""

    def expiries(self, handle: ServingHandle) -> dict[str, datetime]:
        """When the platform will end the parts that run, by `PlatformPart.platform_id`; parts
        without a limit are left out.

        Raises:
            PlatformError: it cannot be asked.
        """

    def address(self, handle: ServingHandle) -> EndpointAddress | None:
        """Where the endpoint listens now; None: nowhere yet, or not any more.

        What it returns also lies in `serving/endpoint.json`, for programs that cannot ask.
        """

    def view(self, handle: ServingHandle) -> CollectorView | None:
        """The replicas as whoever watches them reports them; None: nothing is known yet."""

    def fetch_logs(
        self, handle: ServingHandle, replicas: Sequence[int], *, follow: bool = False
    ) -> None:
        """See that the engine logs of these replicas are files of the swarm's folder; what there
        is none of is left out. With `follow` they go on growing as long as this process lives.

        Raises:
            PlatformError: the platform has them and does not give them.
        """

    def lost(self, handle: ServingHandle) -> str | None:
        """Why nobody will answer at the endpoint again, whatever one waits for; None: somebody may,
        as far as can be seen from here. Only of a swarm that was launched to its end.
        """

    def find(self, handle: ServingHandle) -> list[ServingHandle]:
        """What carries the handle's tag on the platform, recorded or not."""

    def delete(self, handle: ServingHandle) -> None:
        """Stop everything of the handle and everything with its tag; verify. Idempotent.

        Raises:
            PlatformError: something still runs; the message says what.
        """


class ComputeSpec(Record):
    """One program that talks to a swarm's endpoint."""

    job_id: str
    swarm: str | None
    tag: str | None  # the swarm's; the program ends with the swarm
    external_id: str | None = None
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)  # no secrets: paths of key files only
    cwd: str
    job_dir: str
    files: tuple[str, ...] = ()  # that it reads and writes, beside its own folder: paths or URLs
    resources: JobResources = JobResources()
    continues: bool = False  # it may run once more under the same id: see `JobResources.continues`
    platform_options: dict[str, Any] = field(default_factory=dict)  # the validated backend section


class ComputeBackend(Located, Protocol):
    """Work that talks to an endpoint."""

    appears_within_s: float  # a submission that broke off is not in `find` by then: it never will

    def check(self, spec: ComputeSpec) -> None:
        """Refuse what the platform cannot give, before anything is recorded.

        Raises:
            ConfigError: it asks for what this platform has not.
            PlatformError: the platform cannot be asked.
        """

    def submit(self, spec: ComputeSpec) -> JobHandle:
        """Start the program so that it outlives the caller; its exit is recorded by a wrapper.

        Raises:
            SubmissionUnknown: the platform did not answer, and may have started it. Any other
                `SwarmError`: it certainly did not.
        """

    def find(self, job_id: str, job_dir: str) -> JobHandle | None:
        """The job as the platform knows it, recorded or not; None: it never ran, or has ended
        without a trace.
        """

    def probe(self, handle: JobHandle) -> JobStatus:
        """The job's own status: from its exit record first, then from the platform."""

    def probe_all(self, handles: Sequence[JobHandle]) -> dict[str, JobStatus]:
        """The statuses of many jobs by their ids, as `probe` tells them, with as few questions to
        the platform as it allows. One that cannot be asked for now is left out; the log says why.
        """

    def why_waiting(self, handles: Sequence[JobHandle]) -> dict[str, str]:
        """Why those of these jobs that wait for their turn do so, by their ids. Raises nothing:
        what is not known is left out.
        """

    def wait(self, handle: JobHandle, *, timeout_s: float | None = None) -> JobStatus:
        """Block until the job has ended, or until the timeout; return its status then.

        Raises:
            PlatformUnavailable: the platform did not answer once until then.
        """

    def fetch_log(self, handle: JobHandle, *, follow: bool = False) -> None:
        """See that what the job printed is in its log file; see `ServingBackend.fetch_logs`.

        Raises:
            PlatformError: the platform has it and does not give it.
        """

    def cancel(self, handle: JobHandle, *, grace_s: float = 30.0) -> None:
        """End this job and no other: SIGTERM first, so that it flushes. Idempotent.

        Raises:
            PlatformError: it still runs.
        """


def job_handle(
    platform: str,
    job_id: str,
    job_dir: str,
    platform_id: str,
    *,
    step: str | None = None,
    process: ProcessId | None = None,
    spec: ComputeSpec | None = None,
) -> JobHandle:
    """How a job of a platform is found again; `spec`: what was submitted, where that is known."""
    paths = JobPaths(Path(job_dir))
    return JobHandle(
        job_id=job_id,
        swarm=None if spec is None else spec.swarm,
        external_id=None if spec is None else spec.external_id,
        platform=platform,
        platform_id=platform_id,
        step=step,
        process=process,
        job_dir=job_dir,
        log_path=str(paths.log),
        exit_path=str(paths.exit),
        submitted_at=utc_now(),
    )


def refuse_draining(left: Sequence[str]) -> None:
    """Refuse to scale up while replicas that are wanted again have not ended.

    Raises:
        StateError: they have not.
    """
    if left:
        raise StateError(
            f"Replicas that were taken out have not ended yet: {', '.join(left)}.",
            hint="They finish their requests first; try again in a while.",
        )
