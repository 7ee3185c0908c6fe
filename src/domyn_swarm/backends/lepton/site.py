"""What must be true of a workspace for a swarm to run in it."""

from __future__ import annotations

from collections.abc import Iterator

from domyn_swarm.backends.checks import Check, failed, ok, warning
from domyn_swarm.backends.lepton import sdk, specs
from domyn_swarm.backends.lepton.credentials import credentials
from domyn_swarm.backends.lepton.workspace import Workspace
from domyn_swarm.errors import SwarmError
from domyn_swarm.planning.plan import DeploymentPlan


def site_checks(plan: DeploymentPlan) -> Iterator[Check]:
    """Every check of one swarm. Reads; creates nothing."""
    config = specs.section(plan.backend_options)
    try:
        yield ok("leptonai", f"{sdk.version()} is installed")
        workspace = Workspace(credentials(config.workspace_id))
        info = workspace.info()
    except SwarmError as error:
        where = 'See the page "DGX Cloud Lepton" of the documentation.'
        yield failed("workspace", error.message, error.hint or where)
        return
    yield ok("workspace", f"{workspace.id} answers and is {info.workspace_state.value}")
    for what in ("endpoint", "job"):
        shape = getattr(config, what).resource_shape
        if not info.supported_shapes or shape in info.supported_shapes:
            yield ok(f"{what} shape", shape)
        else:
            known = ", ".join(sorted(info.supported_shapes))
            yield warning(
                f"{what} shape",
                f"the workspace does not list {shape}",
                f"It lists: {known}. A dedicated node group may have others.",
            )
    try:
        yield from _secrets(plan, workspace)
    except SwarmError as error:
        yield failed("secrets", error.message, error.hint or "Its user needs to manage secrets.")
    yield _job_files(plan)


def _secrets(plan: DeploymentPlan, workspace: Workspace) -> Iterator[Check]:
    config = specs.section(plan.backend_options)
    named = {*config.endpoint.secret_env.values(), *config.job.secret_env.values()}
    if config.endpoint.api_token_secret_name is not None:
        named.add(config.endpoint.api_token_secret_name)
    missing = sorted(named - workspace.secrets())
    if missing:
        yield failed("secrets", f"there is no {', '.join(missing)}", "Create them there.")
    else:
        yield ok("secrets", f"{len(named)} are named, and are there")


def _job_files(plan: DeploymentPlan) -> Check:
    job = specs.section(plan.backend_options).job
    reached = any(plan.home_directory.is_relative_to(mount.mount_path) for mount in job.mounts)
    if job.image is not None and reached:
        return ok("jobs", f"{job.image} sees {plan.home_directory}")
    lacks = "no image" if job.image is None else f"no mount that holds {plan.home_directory}"
    return warning(
        "jobs",
        f"backend.job has {lacks}: jobs run with --run-here only",
        "Name an image with domyn-swarm, and mount shared storage where it is here.",
    )
