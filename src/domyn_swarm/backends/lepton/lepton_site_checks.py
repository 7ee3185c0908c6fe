"""The checks of `doctor` for a workspace: whether a swarm and its jobs can run in it."""

from __future__ import annotations

from collections.abc import Iterator

from domyn_swarm.backends.checks import Check, failed, ok, warning
from domyn_swarm.backends.lepton import sdk, specs
from domyn_swarm.backends.lepton.credentials import credentials
from domyn_swarm.backends.lepton.workspace import Workspace
from domyn_swarm.errors import SwarmError
from domyn_swarm.planning.plan import DeploymentPlan


def site_checks(plan: DeploymentPlan) -> Iterator[Check]:
    """The checks of one swarm. They create nothing."""
    config = specs.section(plan.backend_options)
    try:
        yield ok("leptonai", f"{sdk.version()} is installed")
        workspace = Workspace(credentials(config.workspace_id))
        info = workspace.info()
    except SwarmError as error:
        page = 'See the page "DGX Cloud Lepton" of the documentation.'
        yield failed("workspace", error.message, error.hint or page)
        return
    yield ok("workspace", f"{workspace.id} answers and is {info.workspace_state.value}")
    for section in ("endpoint", "job"):
        shape = getattr(config, section).resource_shape
        if not info.supported_shapes or shape in info.supported_shapes:
            yield ok(f"{section} shape", shape)
        else:
            listed = ", ".join(sorted(info.supported_shapes))
            yield warning(
                f"{section} shape",
                f"the workspace does not list {shape}",
                f"It lists: {listed}. A dedicated node group may have others.",
            )
    try:
        yield from _secrets(plan, workspace)
    except SwarmError as error:
        yield failed(
            "secrets",
            error.message,
            error.hint or "The token's user must be allowed to manage secrets.",
        )
    yield _job_files(plan)


def _secrets(plan: DeploymentPlan, workspace: Workspace) -> Iterator[Check]:
    config = specs.section(plan.backend_options)
    named = {*config.endpoint.secret_env.values(), *config.job.secret_env.values()}
    if config.endpoint.api_token_secret_name is not None:
        named.add(config.endpoint.api_token_secret_name)
    missing = sorted(named - workspace.secrets())
    if missing:
        yield failed("secrets", f"{', '.join(missing)} are missing", "Create them there.")
    else:
        yield ok("secrets", f"all {len(named)} that the configuration names exist")


def _job_files(plan: DeploymentPlan) -> Check:
    job = specs.section(plan.backend_options).job
    mounted = any(plan.home_directory.is_relative_to(mount.mount_path) for mount in job.mounts)
    if job.image is not None and mounted:
        return ok("jobs", f"{plan.home_directory} is mounted in {job.image}")
    missing = "no image" if job.image is None else f"no mount with {plan.home_directory}"
    return warning(
        "jobs",
        f"backend.job has {missing}: jobs run with --run-here only",
        "Set an image that contains domyn-swarm, and mount shared storage at the path it has here.",
    )
