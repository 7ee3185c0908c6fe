"""The records of a job for the database and the platform, and the address of the model that it
uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from domyn_swarm import logs
from domyn_swarm.backends.endpoint.view import EndpointAddress
from domyn_swarm.backends.protocols import ComputeSpec
from domyn_swarm.config.environment import checked_endpoint, key_of_environment
from domyn_swarm.errors import (
    CheckpointBusy,
    ConfigError,
    JobError,
    OutputExists,
    PlatformError,
    StateError,
    SwarmError,
    words_of,
)
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.model import JobHandle, JobStatus, utc_now
from domyn_swarm.paths import JobPaths, write_private
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.state import JobRecord
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.job_request import JobRequest, ScriptRequest
from domyn_swarm.swarm.reconcile import check_not_lost, without_endpoint
from domyn_swarm.swarm.whereabouts import endpoint_address, location_of_new_job

if TYPE_CHECKING:
    from domyn_swarm.net.openai import ClientAddress


def live_address(swarm: LiveSwarm) -> EndpointAddress:
    """Where a swarm's endpoint listens.

    Raises:
        StateError: it has no endpoint now, or none that will answer again.
        RunsElsewhere: its endpoint is not reached from here.
    """
    check_not_lost(swarm, "has no endpoint")
    address = endpoint_address(swarm)
    if address is None:
        raise without_endpoint(swarm)
    return address


def client_address(swarm: LiveSwarm) -> ClientAddress:
    """The address and the key with which a client in this process reaches a swarm.

    Raises:
        StateError, RunsElsewhere: as `live_address`; or its key cannot be read.
    """
    from domyn_swarm.net.openai import ClientAddress

    address = live_address(swarm)
    try:
        key = swarm.paths.api_key.read_text("utf-8").strip()
    except OSError as error:
        raise StateError(
            f"The key of the swarm {swarm.record.name} cannot be read. "
            f"{words_of(error, swarm.paths.api_key)}",
            hint="The user who brought it up can read it, on a machine that has its home.",
        ) from error
    ca_file = None if address.ca_file is None else str(address.ca_file)
    # the platform's own endpoint: the connection leaves the site
    outside = address.collector_url is None
    return ClientAddress(address.url, key, use_proxy=outside, ca_file=ca_file)


def swarm_access(swarm: LiveSwarm) -> dict[str, Any]:
    """A swarm's address as the job's specification has it.

    Raises:
        StateError: it has no endpoint now, or none that will answer again.
        RunsElsewhere: its endpoint is not reached from here.
    """
    address = live_address(swarm)
    handle = swarm.handle
    endpoint = tuple(part for part in handle.parts if part.kind == "endpoint")
    return {
        "model": swarm.plan.model,
        "serving": handle.model_copy(update={"parts": endpoint}).model_dump(mode="json"),
        "revision": swarm.plan.revision,
        "endpoint_file": str(swarm.paths.endpoint),
        "api_key_file": str(swarm.paths.api_key),
        "collector_key_file": str(swarm.paths.collector_key) if address.collector_url else None,
    }


def endpoint_access(request: JobRequest, paths: JobPaths) -> dict[str, str | None]:
    """The address of an endpoint that is not ours; its key comes from the environment: see
    `keep_key`.
    """
    if request.endpoint is None or request.model is None:
        raise ConfigError(
            "A job needs a swarm, or --endpoint and --model.",
            hint="Name a live swarm with --name, see `domyn-swarm swarm list`.",
        )
    return {
        "model": request.model,
        "endpoint_url": checked_endpoint(request.endpoint),
        "api_key_file": str(_key_file(paths)) if key_of_environment() else None,
    }


def keep_key(spec: JobSpec, paths: JobPaths) -> None:
    """Write the key of an endpoint that is not ours to the file from which the job reads it."""
    key = key_of_environment()
    if key and spec.api_key_file == str(_key_file(paths)):
        write_private(_key_file(paths), key)


def _key_file(paths: JobPaths) -> Path:
    return paths.root / "api_key"


def endpoint_url(swarm: LiveSwarm) -> str:
    """The URL at which its endpoint listens now; empty if it does not."""
    address = endpoint_address(swarm)
    return "" if address is None else address.url


def exempt_from_proxy(url: str) -> dict[str, str]:
    """Variables with which a user's program reaches this endpoint directly, not through the site's
    proxy; existing exemptions are kept.
    """
    known = [os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")]
    names = ",".join(dict.fromkeys(filter(None, [urlsplit(url).hostname, *known])))
    return {"NO_PROXY": names, "no_proxy": names}


def new_record(
    spec: JobSpec, paths: JobPaths, swarm: LiveSwarm | None, external_id: str | None
) -> JobRecord:
    """The record of a job that is about to be submitted.

    Raises:
        RunsElsewhere: it would run beside a swarm that is not here.
        PlatformError: the platform cannot be asked where it would run.
    """
    platform = platform_of(spec.resources, swarm)
    return JobRecord(
        job_id=spec.job_id,
        external_id=external_id,
        name=spec.name,
        swarm=None if swarm is None else swarm.record.name,
        platform=platform,
        location=location_of_new_job(platform, swarm),
        status=JobStatus.PENDING,
        job_dir=str(paths.root),
        input=spec.input,
        output=spec.output,
        submitted_at=utc_now(),
    )


def script_job(
    request: ScriptRequest, swarm: LiveSwarm, job_id: str
) -> tuple[JobRecord, ComputeSpec]:
    """The record of a user's program beside a swarm, and the specification for its platform.

    Raises:
        ConfigError: there is no such program, or it cannot be run.
        StateError: the swarm has no endpoint.
        RunsElsewhere: the swarm, or its endpoint, cannot be used from here.
        PlatformError: the platform cannot be asked where it would run.
    """
    where = swarm_access(swarm)
    script, platform = request.script.absolute(), platform_of(request.resources, swarm)
    argv = (*program_of(script), *request.args)
    record = JobRecord(
        job_id=job_id,
        external_id=request.external_id,
        name=request.name or script.name,
        swarm=swarm.record.name,
        platform=platform,
        location=location_of_new_job(platform, swarm),
        status=JobStatus.PENDING,
        job_dir=str(swarm.paths.job(job_id).root),
        input=str(script),
        output=None,
        submitted_at=utc_now(),
    )
    spec = compute_spec(record, request.resources, swarm, (str(script),))
    url, ours = endpoint_url(swarm), where["collector_key_file"] is not None
    env = {
        **spec.env,
        **(exempt_from_proxy(url) if ours else {}),
        "ENDPOINT": url,
        "MODEL": swarm.plan.model,
        "DOMYN_SWARM_API_KEY_FILE": str(where["api_key_file"]),
        "DOMYN_SWARM_ENDPOINT_FILE": str(where["endpoint_file"]),
    }
    return record, spec.model_copy(update={"argv": argv, "env": env})


def platform_of(resources: JobResources, swarm: LiveSwarm | None) -> str:
    """The platform that a job runs on."""
    here = swarm is None or resources.placement == "here"
    return "local" if here or swarm is None else swarm.record.backend


def program_of(script: Path) -> list[str]:
    """The command that runs a user's program.

    Raises:
        ConfigError: there is none, or it cannot be run.
    """
    if not script.is_file():
        raise ConfigError(f"There is no file {script}.")
    if script.suffix == ".py":
        return [sys.executable, str(script)]
    if not os.access(script, os.X_OK):
        raise ConfigError(
            f"{script} is neither a .py file nor executable.", hint=f"chmod +x {script}"
        )
    return [str(script)]


def check_others(
    output: str,
    answers: Path | None,
    jobs: Sequence[JobRecord],
    refresh: Callable[[JobRecord], JobRecord],
) -> Callable[[Iterable[JobRecord]], None]:
    """Refuse an output that another job will write, and rows that it will send.

    Args:
        output: of the new job.
        answers: the folder of its checkpoint; None: it keeps none.
        jobs: all recorded jobs.
        refresh: asks a job's platform for its status.

    Returns:
        The same check for the moment at which the job is recorded: of the jobs known by then, that
        none was submitted meanwhile.

    Raises:
        OutputExists, CheckpointBusy: one of them has not ended.
    """
    against = {job.job_id: _against(job, output, answers) for job in jobs}
    for job in jobs:
        refusal = against[job.job_id]
        if refusal is None:
            continue
        with contextlib.suppress(PlatformError):  # a job whose status is not known may have ended
            if not refresh(job).status.final:
                raise refusal

    def check_newer(known: Iterable[JobRecord]) -> None:
        for job in known:
            refusal = None if against.get(job.job_id) else _against(job, output, answers)
            if refusal is not None:
                raise refusal

    return check_newer


def _against(job: JobRecord, output: str, answers: Path | None) -> SwarmError | None:
    """The conflict of a running job with another one that has this output and checkpoint."""
    if job.output is None or job.status.final:
        return None
    if _place(job.output) == _place(output):
        return OutputExists(
            f"The job {job.job_id} is going to write {output}.",
            hint="Wait for it, cancel it, or choose another --output.",
        )
    if answers is None or _asks(job) != answers:
        return None
    return CheckpointBusy(
        f"The job {job.job_id} sends the same rows, or will, for {job.output}.",
        hint=f"Wait for it (domyn-swarm job wait {job.job_id}): its answers are kept, and this job "
        f"finds them. Or cancel it (domyn-swarm job cancel {job.job_id}). --checkpoint-tag NAME "
        "asks all rows once more, for answers of their own.",
    )


def _asks(job: JobRecord) -> Path | None:
    """The folder of the answers to a job's rows, from the file that its submitter left."""
    try:
        return Path(JobPaths(Path(job.job_dir)).asks.read_text("utf-8"))
    except OSError:  # it keeps none, or its folder was removed
        return None


def _place(output: str) -> str:
    """The same value for all names of one file or URL."""
    path = output.removeprefix("file://")
    return path.rstrip("/") if "://" in path else os.path.realpath(path)


def check_budget(resources: JobResources, swarm: LiveSwarm | None) -> None:
    """Refuse a budget of GPU-hours that cannot be counted.

    Raises:
        ConfigError: there is no swarm, or its replicas have no GPUs.
    """
    if resources.max_gpu_hours is None:
        return
    if swarm is None:
        raise ConfigError(
            "--max-gpu-hours needs a swarm: the GPUs behind an endpoint that is not ours are not "
            "known.",
            hint="Take it out, or bound the job with --stop-after TIME.",
        )
    if swarm.plan.layout.gpus_per_replica == 0:
        raise ConfigError(
            f"--max-gpu-hours: the replicas of {swarm.record.name} have no GPUs "
            "(gpus_per_replica: 0).",
            hint="Take it out, or bound the job with --stop-after TIME.",
        )


def check_down_after(swarm: LiveSwarm | None) -> None:
    """Refuse to promise a shutdown that no program would carry out.

    Raises:
        ConfigError: there is no swarm, or nothing of ours runs beside it that could end it.
    """
    if swarm is None:
        raise ConfigError("There is no swarm to shut down after the job: take out --down-after.")
    if not swarm.backend.supervised:
        raise ConfigError(
            f"On {swarm.record.backend} no program of ours can shut the swarm down after the job.",
            hint="Take out --down-after and run `domyn-swarm down`, or set idle_timeout_s.",
        )


def end_after(swarm: LiveSwarm, handle: JobHandle) -> None:
    """Have the endpoint program end the swarm once the job has ended.

    Raises:
        JobError: the request cannot be written; the job runs all the same.
    """
    file = swarm.paths.down_after / f"{handle.job_id}.json"
    try:
        write_private(file, handle.model_dump_json())
    except OSError as error:
        raise JobError(
            f"The job {handle.job_id} was submitted, but its swarm is not configured to end "
            f"after it. {words_of(error, file)}",
            hint=f"`domyn-swarm job wait {handle.job_id}`, then `domyn-swarm down "
            f"{swarm.record.name}`.",
        ) from error


def request_notification(record: JobRecord, swarm: LiveSwarm | None) -> None:
    """Have the job's wrapper notify the swarm's webhook of its end, if the swarm has one."""
    if swarm is None or not swarm.paths.notify_url.exists():
        return
    fields = {
        "url_file": str(swarm.paths.notify_url),
        "platform": record.platform,  # it may know why the job was ended
        "facts": {"swarm": record.swarm, "job_id": record.job_id, "name": record.name},
    }
    write_private(JobPaths(Path(record.job_dir)).notify, json.dumps(fields))


def compute_spec(
    record: JobRecord, resources: JobResources, swarm: LiveSwarm | None, files: tuple[str, ...]
) -> ComputeSpec:
    """The specification of a job for its platform."""
    return ComputeSpec(
        job_id=record.job_id,
        swarm=record.swarm,
        tag=None if swarm is None else swarm.record.tag,
        external_id=record.external_id,
        argv=(sys.executable, "-m", "domyn_swarm.jobs.worker", record.job_dir),
        env=logs.variables(),
        cwd=str(Path.cwd()),
        job_dir=record.job_dir,
        files=files,
        resources=resources,
        platform_options={} if swarm is None else swarm.plan.backend_options,
    )
