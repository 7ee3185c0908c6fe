"""A swarm as a deployment of the workspace, whose replicas the platform routes to and replaces."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from domyn_swarm.backends.checks import Check, ok
from domyn_swarm.backends.endpoint.view import CollectorView, EndpointAddress, read_address
from domyn_swarm.backends.lepton import lepton_states, specs, streams
from domyn_swarm.backends.lepton.credentials import (
    InWorkspace,
    LaunchedIn,
    credentials,
    record_workspace,
    workspace_of,
)
from domyn_swarm.backends.lepton.lepton_states import Deployment
from domyn_swarm.backends.lepton.workspace import Workspace
from domyn_swarm.backends.protocols import (
    LaunchScripts,
    PartRecorder,
    PlatformPart,
    ServingBackend,
    ServingHandle,
)
from domyn_swarm.errors import ConfigError, PlatformError, SwarmError
from domyn_swarm.model import utc_now
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan
from domyn_swarm.probing import Deadline, Observation, Phase, wait_until

if TYPE_CHECKING:
    from domyn_swarm.backends.rehearsal import Rehearsal

_FRESH_S = 1.0  # how long the cached state of the deployment is used
_STALE_S = 60.0
_GONE_S = 180.0
_JOB_GRACE_S = 60.0
_DOCUMENT = "endpoint.json"


class LeptonServing(InWorkspace, ServingBackend):
    """One deployment of the platform; replica i is the i-th replica that it runs at the time."""

    supervised = False

    def __init__(self) -> None:
        self._cached: dict[str, tuple[float, Deployment | None]] = {}
        self._workspaces: dict[str, Workspace] = {}

    @override
    def launch(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        scripts: LaunchScripts,
        record: PartRecorder,
    ) -> ServingHandle:
        config = specs.section(plan.backend_options)
        paths = SwarmPaths.of(plan.home_directory, plan.name)
        workspace = self._workspace(config.workspace_id)
        record_workspace(paths, LaunchedIn(workspace_id=workspace.id, url=workspace.url))
        named = config.endpoint.api_token_secret_name
        if named is None:
            workspace.create_secret(
                specs.secret_name(ctx.tag), paths.api_key.read_text("utf-8").strip()
            )
        else:
            _check_named_secret(named, workspace)
        workspace.create_deployment(json.loads(scripts.texts[_DOCUMENT]), ctx.tag)
        self._cached.pop(ctx.tag, None)
        parts = _parts(ctx.tag, plan.launched_replicas)
        record(*parts)
        return ServingHandle(
            platform="lepton", tag=ctx.tag, swarm_dir=str(paths.root), parts=tuple(parts)
        )

    @override
    def scripts(self, plan: DeploymentPlan, ctx: DeploymentContext) -> LaunchScripts:
        """The document of the deployment."""
        return LaunchScripts({_DOCUMENT: json.dumps(specs.endpoint_spec(plan, ctx), indent=2)})

    @override
    def rehearse(self, plan: DeploymentPlan, scripts: LaunchScripts) -> tuple[Check, ...]:
        """Checks the workspace: the platform has no rehearsal."""
        workspace = self._workspace(specs.section(plan.backend_options).workspace_id)
        info = workspace.info()
        message = f"the workspace {workspace.id} answers and is {info.workspace_state.value}"
        return (ok("rehearsal", message),)

    @override
    def checks(self, plan: DeploymentPlan) -> Iterator[Check]:
        from domyn_swarm.backends.lepton.lepton_site_checks import site_checks

        return site_checks(plan)

    @override
    def checks_on_node(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        wish: Rehearsal,
    ) -> Iterator[Check]:
        """Refused: the image contains everything that runs there.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "The nodes of a Lepton workspace cannot be checked.",
            hint="Leave out --rehearse: only what the image contains runs there.",
        )

    @override
    def scale(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        handle: ServingHandle,
        record: PartRecorder,
    ) -> None:
        """The platform chooses which replicas it stops."""
        name = specs.deployment_name(ctx.tag)
        workspace = self._workspace_of(handle)
        workspace.patch_deployment(name, specs.replicas_patch(plan.layout.replicas))
        self._cached.pop(ctx.tag, None)
        recorded = {part.platform_id for part in handle.parts}
        parts = _parts(ctx.tag, plan.layout.replicas)
        record(*(part for part in parts if part.platform_id not in recorded))

    @override
    def probe(self, handle: ServingHandle) -> Observation:
        return lepton_states.observation(self._deployment(handle))

    @override
    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        """Every part has the phase of the deployment."""
        observation = lepton_states.observation(self._deployment(handle))
        return {part.platform_id: observation for part in handle.parts}

    @override
    def expiries(self, handle: ServingHandle) -> dict[str, datetime]:
        return {}

    @override
    def lost(self, handle: ServingHandle) -> str | None:
        """Lost once the workspace has stopped or deleted the deployment."""
        if workspace_of(SwarmPaths(Path(handle.swarm_dir))) is None:
            return None
        try:
            observation = lepton_states.observation(self._deployment(handle))
        except SwarmError:  # without an answer the deployment counts as not lost
            return None
        return observation.detail if observation.phase is Phase.STOPPED else None

    @override
    def address(self, handle: ServingHandle) -> EndpointAddress | None:
        deployment, paths = self._deployment(handle), SwarmPaths(Path(handle.swarm_dir))
        if deployment is None or deployment.url is None:
            paths.endpoint.unlink(missing_ok=True)
            return None
        address = EndpointAddress(url=deployment.url)
        if read_address(paths) != address:
            write_private(paths.endpoint, address.model_dump_json())
        return address

    @override
    def view(self, handle: ServingHandle) -> CollectorView | None:
        deployment = self._deployment(handle)
        if deployment is None:
            return None
        elastic = handle.least_replicas is not None
        return CollectorView(
            replicas=lepton_states.reports(deployment),
            taken_at=utc_now(),
            stale_after_s=_STALE_S,
            tag=handle.tag,
            elastic=elastic,
            asked_for=tuple(range(deployment.replicas_wanted)) if elastic else None,
        )

    @override
    def fetch_logs(
        self, handle: ServingHandle, replicas: Sequence[int], *, follow: bool = False
    ) -> None:
        deployment, paths = self._deployment(handle), SwarmPaths(Path(handle.swarm_dir))
        if deployment is None:
            return
        workspace, name = self._workspace_of(handle), deployment.name
        for index in replicas:
            if index >= len(deployment.replicas):
                continue
            replica, path = deployment.replicas[index].id, paths.engine_log(index)
            streams.save(workspace.deployment_log(name, replica, follow=False), path)
            if follow:
                streams.follow(workspace.deployment_log(name, replica, follow=True), path)

    @override
    def find(self, handle: ServingHandle) -> list[ServingHandle]:
        """The deployment's name is derived from the tag."""
        self._cached.pop(handle.tag, None)
        deployment = self._deployment(handle)
        if deployment is None or deployment.tag != handle.tag:
            return []
        parts = _parts(handle.tag, deployment.replicas_wanted)
        return [handle.model_copy(update={"parts": tuple(parts)})]

    @override
    def delete(self, handle: ServingHandle) -> None:
        """The clients' API key is deleted, too."""
        paths = SwarmPaths(Path(handle.swarm_dir))
        if workspace_of(paths) is not None:  # else no workspace was ever called
            self._delete(handle)
        paths.endpoint.unlink(missing_ok=True)
        paths.api_key.unlink(missing_ok=True)

    def _delete(self, handle: ServingHandle) -> None:
        from domyn_swarm.backends.lepton.lepton_compute import end_job

        workspace, name = self._workspace_of(handle), specs.deployment_name(handle.tag)
        for job in workspace.jobs_of(handle.tag):
            end_job(workspace, job.id, grace_s=_JOB_GRACE_S)
        if self.find(handle):
            workspace.delete_deployment(name)
            self._await_gone(handle)
        workspace.delete_secret(specs.secret_name(handle.tag))

    def _await_gone(self, handle: ServingHandle) -> None:
        def probe() -> Observation:
            return Observation(Phase.STARTING if self.find(handle) else Phase.READY)

        last = wait_until(probe, deadline=Deadline(_GONE_S), every_s=_FRESH_S)
        if last.phase is not Phase.READY:
            raise PlatformError(
                f"The workspace still has the deployment {specs.deployment_name(handle.tag)}.",
                hint="Its deletion may take longer. Run `domyn-swarm down` again, and check the "
                "workspace's dashboard.",
            )

    def _deployment(self, handle: ServingHandle) -> Deployment | None:
        """The swarm's deployment, at most `_FRESH_S` old; None: there is none."""
        at, deployment = self._cached.get(handle.tag, (0.0, None))
        if at and time.monotonic() - at < _FRESH_S:
            return deployment
        if workspace_of(SwarmPaths(Path(handle.swarm_dir))) is None:
            return None
        deployment = self._workspace_of(handle).deployment(specs.deployment_name(handle.tag))
        self._cached[handle.tag] = (time.monotonic(), deployment)
        return deployment

    def _workspace_of(self, handle: ServingHandle) -> Workspace:
        """The workspace in which the swarm was launched."""
        return self._workspace(None, workspace_of(SwarmPaths(Path(handle.swarm_dir))))

    def _workspace(
        self, configured: str | None, launched_in: LaunchedIn | None = None
    ) -> Workspace:
        given = credentials(configured, launched_in)
        key = given.model_dump_json()
        if key not in self._workspaces:
            self._workspaces[key] = Workspace(given)
        return self._workspaces[key]


def _check_named_secret(name: str, workspace: Workspace) -> None:
    """Check that the named secret exists, and that the caller has its value, the clients' API key:
    a workspace does not return the values of secrets.

    Raises:
        ConfigError: the secret does not exist, or `DOMYN_SWARM_API_TOKEN` is not set.
    """
    if name not in workspace.secrets():
        raise ConfigError(
            f"The workspace {workspace.id} has no secret {name!r}.",
            hint="Create it there, or remove backend.endpoint.api_token_secret_name.",
        )
    if not os.environ.get("DOMYN_SWARM_API_TOKEN"):
        raise ConfigError(
            f"The clients' API key is the value of the secret {name!r}, which cannot be read back.",
            hint="Export it as DOMYN_SWARM_API_TOKEN.",
        )


def _parts(tag: str, replicas: int) -> list[PlatformPart]:
    name = specs.deployment_name(tag)
    replica_parts = [
        PlatformPart(kind="replica", index=index, platform_id=f"{name}_{index}")
        for index in range(replicas)
    ]
    return [PlatformPart(kind="endpoint", platform_id=name), *replica_parts]
