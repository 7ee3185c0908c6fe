"""The two protocols that a platform implements, and the records they exchange.

A backend belongs here if it passes the conformance suite (`tests/conformance`).
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
    """A process, scheduler job or deployment that the platform runs for a swarm."""

    kind: Literal["endpoint", "replica"]
    index: int = 0  # of the replica
    platform_id: str  # pid, scheduler job id, deployment name
    process: ProcessId | None = None


class ServingHandle(Record):
    """The data with which any process can address everything that a swarm started."""

    schema_version: Literal[1] = 1
    platform: str
    tag: str
    swarm_dir: str
    parts: tuple[PlatformPart, ...] = ()
    location: Location | None = None  # None: not recorded, taken for here
    # Of an elastic swarm: the minimum number of replicas. They are no parts of the handle: the
    # endpoint program starts and ends them, and `find` returns those that exist.
    least_replicas: int | None = None


@dataclass(frozen=True)
class LaunchScripts:
    """What the platform receives for a launch: what is shown to the user is what is submitted."""

    texts: Mapping[str, str]  # keyed by file name; empty if the platform takes no scripts
    replicas_per_task: int = 1  # replicas that share one task of the scheduler
    unasked: PlatformError | None = None  # why the scheduler did not report how it assigns nodes


class PartRecorder(Protocol):
    """Called as soon as the platform has returned ids, before anything else is started, with all
    parts that one answer of the platform started, so that they are recorded together.
    """

    def __call__(self, *parts: PlatformPart) -> None:
        """Add the parts to the swarm's record."""


class Located(Protocol):
    """The place where things run, for both protocols of a platform. Processes of another host and
    jobs of another cluster are not visible from here, which does not mean that they have ended.
    """

    def location(self, options: Mapping[str, Any]) -> Location:
        """The place where something that is started now would run; `options`: the backend section.

        Raises:
            ConfigError: no workspace is configured.
            PlatformError: the platform cannot be asked.
        """

    def reach(self, location: Location | None) -> Reach:
        """Whether something that was started at a place can be reached from here; None: no place
        was recorded, taken for here.

        Raises:
            PlatformError: the platform cannot be asked now.
        """


class ServingBackend(Located, Protocol):
    """An endpoint with replicas behind it."""

    supervised: bool  # whether an endpoint program of ours supervises the swarm, and can end it

    def launch(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        scripts: LaunchScripts,
        record: PartRecorder,
    ) -> ServingHandle:
        """Start the endpoint and every replica; return without waiting for readiness. `scripts` are
        those of this plan and context; they are submitted unchanged.

        Raises:
            PlatformError: something could not be started; what was started has been recorded.
        """

    def scripts(self, plan: DeploymentPlan, ctx: DeploymentContext) -> LaunchScripts:
        """The scripts that `launch` submits. Writes nothing and starts nothing. The scheduler is
        asked how it assigns nodes; if it does not answer, `unasked` says why, and jobs share nodes.

        Raises:
            ConfigError: the platform cannot serve the plan.
        """

    def rehearse(self, plan: DeploymentPlan, scripts: LaunchScripts) -> tuple[Check, ...]:
        """Ask the platform whether it would accept this launch; returns its answer and its
        warnings. Starts nothing.

        Raises:
            PlatformError: it would refuse, or cannot be asked.
        """

    def checks(self, plan: DeploymentPlan) -> Iterator[Check]:
        """The checks of `doctor` on this platform. Starts nothing, raises nothing."""

    def checks_on_node(
        self, plan: DeploymentPlan, ctx: DeploymentContext, wish: Rehearsal
    ) -> Iterator[Check]:
        """The checks that a program of ours reports from a node, on which it runs for a moment.

        Raises:
            ConfigError: the platform has no nodes that could be checked.
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
        """Bring the swarm to the size of a plan that differs in its size only; idempotent.

        Replicas of the plan that neither run nor wait are started, and those beyond it are
        signalled to drain; the method waits for neither.

        Raises:
            StateError: a replica that is wanted again has not ended yet.
            SubmissionUnknown: replicas may come yet; the endpoint follows the plan.
            PlatformError: something could not be started; the endpoint follows what it did before.
        """

    def probe(self, handle: ServingHandle) -> Observation:
        """The state of the whole swarm on the platform: queued, starting (it runs), stopped,
        failed.

        READY means that the endpoint program and enough replica processes run, not that they serve.
        A handle of something that never existed is STOPPED.
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
        """Where the endpoint listens now; None: not yet, or no longer.

        The address is also in `serving/endpoint.json`, for programs that cannot ask.
        """

    def view(self, handle: ServingHandle) -> CollectorView | None:
        """The replicas as last reported; None: nothing was reported yet."""

    def fetch_logs(
        self, handle: ServingHandle, replicas: Sequence[int], *, follow: bool = False
    ) -> None:
        """Make the engine logs of these replicas files of the swarm's folder; missing logs are left
        out. With `follow` they keep growing as long as this process lives.

        Raises:
            PlatformError: the platform has them and does not return them.
        """

    def lost(self, handle: ServingHandle) -> str | None:
        """Why the endpoint will never answer again; None: it may, as far as can be determined from
        here. Applies only to a swarm whose launch was completed.
        """

    def find(self, handle: ServingHandle) -> list[ServingHandle]:
        """Everything on the platform that has the handle's tag, recorded or not."""

    def delete(self, handle: ServingHandle) -> None:
        """Stop everything of the handle and everything with its tag; verify. Idempotent.

        Raises:
            PlatformError: something still runs; the message says what.
        """


class ComputeSpec(Record):
    """A program that sends requests to a swarm's endpoint."""

    job_id: str
    swarm: str | None
    tag: str | None  # of the swarm; the program ends with it
    external_id: str | None = None
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)  # no secrets: paths of key files only
    cwd: str
    job_dir: str
    # files that it reads and writes, besides its own folder: paths or URLs
    files: tuple[str, ...] = ()
    resources: JobResources = JobResources()
    # whether it may run again under the same id: see `JobResources.continues`
    continues: bool = False
    platform_options: dict[str, Any] = field(default_factory=dict)  # the validated backend section


class ComputeBackend(Located, Protocol):
    """The platform's operations for jobs of a swarm."""

    # seconds after which an interrupted submission that `find` does not return never took place
    appears_within_s: float

    def check(self, spec: ComputeSpec) -> None:
        """Refuse what the platform cannot provide, before anything is recorded.

        Raises:
            ConfigError: the job asks for something that this platform lacks.
            PlatformError: the platform cannot be asked.
        """

    def submit(self, spec: ComputeSpec) -> JobHandle:
        """Start the program so that it outlives the caller; a wrapper records its exit.

        Raises:
            SubmissionUnknown: the platform did not answer, and may have started it. After any other
                `SwarmError` it certainly has not.
        """

    def find(self, job_id: str, job_dir: str) -> JobHandle | None:
        """The job on the platform, recorded or not; None: it never ran, or has ended without a
        trace.
        """

    def probe(self, handle: JobHandle) -> JobStatus:
        """The job's own status: from its exit record, else from the platform."""

    def probe_all(self, handles: Sequence[JobHandle]) -> dict[str, JobStatus]:
        """The statuses of many jobs by their ids, as `probe` returns them, with as few queries of
        the platform as it allows. A job whose status is unknown now is left out; the log says why.
        """

    def why_waiting(self, handles: Sequence[JobHandle]) -> dict[str, str]:
        """Why those of these jobs that wait do so, by their ids. Raises nothing: unknown reasons
        are left out.
        """

    def wait(self, handle: JobHandle, *, timeout_s: float | None = None) -> JobStatus:
        """Wait until the job has ended, or for the timeout; return its status then.

        Raises:
            PlatformUnavailable: the platform did not answer once in that time.
        """

    def fetch_log(self, handle: JobHandle, *, follow: bool = False) -> None:
        """Make the job's output available in its log file; see `ServingBackend.fetch_logs`.

        Raises:
            PlatformError: the platform has it and does not return it.
        """

    def cancel(self, handle: JobHandle, *, grace_s: float = 30.0) -> None:
        """End this job and no other: SIGTERM first, so that it can flush. Idempotent.

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
    """The handle of a job on a platform; `spec` is what was submitted, if that is known."""
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
    """Refuse to scale up while replicas that are wanted again are still draining.

    Raises:
        StateError: they are.
    """
    if left:
        raise StateError(
            f"Replicas that were taken out have not ended yet: {', '.join(left)}.",
            hint="They finish their requests first; try again in a while.",
        )
