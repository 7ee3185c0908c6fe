"""A swarm as one deployment of the workspace: the platform routes, watches and replaces."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from domyn_swarm.backends.base import LaunchScripts, Part, PartRecorder, ServingHandle
from domyn_swarm.backends.checks import Check, ok
from domyn_swarm.backends.endpoint.view import CollectorView, EndpointAddress, read_address
from domyn_swarm.backends.lepton import specs, states, streams
from domyn_swarm.backends.lepton.credentials import (
    InWorkspace,
    Place,
    credentials,
    place_of,
    remember,
)
from domyn_swarm.backends.lepton.states import DeploymentSeen
from domyn_swarm.backends.lepton.workspace import Workspace
from domyn_swarm.errors import ConfigError, PlatformError, SwarmError
from domyn_swarm.model import utc_now
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan
from domyn_swarm.probing import Deadline, Observation, Phase, wait_until

if TYPE_CHECKING:
    from domyn_swarm.backends.rehearsal import Rehearsal

_FRESH_S = 1.0  # one look serves everything that is asked within so long
_STALE_S = 60.0
_GONE_S = 180.0
_JOB_GRACE_S = 60.0
_DOCUMENT = "endpoint.json"


class LeptonServing(InWorkspace):
    """See `ServingBackend`. Replicas are places of the deployment, which the platform fills."""

    supervised = False

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, DeploymentSeen | None]] = {}
        self._workspaces: dict[str, Workspace] = {}

    def launch(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        scripts: LaunchScripts,
        record: PartRecorder,
    ) -> ServingHandle:
        """See `ServingBackend.launch`."""
        config = specs.section(plan.backend_options)
        paths = SwarmPaths.of(plan.home_directory, plan.name)
        workspace = self._workspace(config.workspace_id)
        remember(paths, Place(workspace_id=workspace.id, url=workspace.url))
        named = config.endpoint.api_token_secret_name
        if named is None:
            workspace.create_secret(
                specs.secret_name(ctx.tag), paths.api_key.read_text("utf-8").strip()
            )
        else:
            _check_named_secret(named, workspace)
        workspace.create_deployment(json.loads(scripts.texts[_DOCUMENT]), ctx.tag)
        self._seen.pop(ctx.tag, None)
        parts = _parts(ctx.tag, plan.launched_replicas)
        record(*parts)
        return ServingHandle(
            platform="lepton", tag=ctx.tag, swarm_dir=str(paths.root), parts=tuple(parts)
        )

    def scripts(self, plan: DeploymentPlan, ctx: DeploymentContext) -> LaunchScripts:
        """See `ServingBackend.scripts`: the deployment's document."""
        return LaunchScripts({_DOCUMENT: json.dumps(specs.endpoint_spec(plan, ctx), indent=2)})

    def rehearse(self, plan: DeploymentPlan, scripts: LaunchScripts) -> tuple[Check, ...]:  # noqa: ARG002 - of the protocol
        """See `ServingBackend.rehearse`. The platform rehearses nothing: what it says of itself."""
        workspace = self._workspace(specs.section(plan.backend_options).workspace_id)
        info = workspace.info()
        said = f"the workspace {workspace.id} answers and is {info.workspace_state.value}"
        return (ok("rehearsal", said),)

    def checks(self, plan: DeploymentPlan) -> Iterator[Check]:
        """See `ServingBackend.checks`."""
        from domyn_swarm.backends.lepton.site import site_checks

        return site_checks(plan)

    def checks_on_node(
        self,
        plan: DeploymentPlan,  # noqa: ARG002 - of the protocol
        ctx: DeploymentContext,  # noqa: ARG002
        wish: Rehearsal,  # noqa: ARG002
    ) -> Iterator[Check]:
        """See `ServingBackend.checks_on_node`: there is nothing to try, images bring it all."""
        raise ConfigError(
            "The nodes of a Lepton workspace cannot be tried.",
            hint="Leave --rehearse out; what runs there is what the image holds.",
        )

    def scale(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        handle: ServingHandle,
        record: PartRecorder,
    ) -> None:
        """See `ServingBackend.scale`. Which replica goes is the platform's choice."""
        name = specs.deployment_name(ctx.tag)
        self._at(handle).patch_deployment(name, specs.replicas_patch(plan.layout.replicas))
        self._seen.pop(ctx.tag, None)
        known = {part.platform_id for part in handle.parts}
        parts = _parts(ctx.tag, plan.layout.replicas)
        record(*(part for part in parts if part.platform_id not in known))

    def probe(self, handle: ServingHandle) -> Observation:
        """See `ServingBackend.probe`."""
        return states.observation(self._look(handle))

    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        """See `ServingBackend.probe_parts`. A place is as far as its deployment."""
        seen = states.observation(self._look(handle))
        return {part.platform_id: seen for part in handle.parts}

    def expiries(self, handle: ServingHandle) -> dict[str, datetime]:  # noqa: ARG002 - nothing expires
        """See `ServingBackend.expiries`."""
        return {}

    def lost(self, handle: ServingHandle) -> str | None:
        """See `ServingBackend.lost`: what the workspace has stopped or does not have any more."""
        if place_of(SwarmPaths(Path(handle.swarm_dir))) is None:
            return None
        try:
            seen = states.observation(self._look(handle))
        except SwarmError:  # who cannot ask knows of no end
            return None
        return seen.detail if seen.phase is Phase.STOPPED else None

    def address(self, handle: ServingHandle) -> EndpointAddress | None:
        """See `ServingBackend.address`."""
        seen, paths = self._look(handle), SwarmPaths(Path(handle.swarm_dir))
        if seen is None or seen.url is None:
            paths.endpoint.unlink(missing_ok=True)
            return None
        address = EndpointAddress(url=seen.url)
        if read_address(paths) != address:
            write_private(paths.endpoint, address.model_dump_json())
        return address

    def view(self, handle: ServingHandle) -> CollectorView | None:
        """See `ServingBackend.view`."""
        seen = self._look(handle)
        if seen is None:
            return None
        elastic = handle.least_replicas is not None
        return CollectorView(
            replicas=states.reports(seen),
            taken_at=utc_now(),
            stale_after_s=_STALE_S,
            tag=handle.tag,
            elastic=elastic,
            asked_for=tuple(range(seen.replicas_wanted)) if elastic else None,
        )

    def fetch_logs(
        self, handle: ServingHandle, replicas: Sequence[int], *, follow: bool = False
    ) -> None:
        """See `ServingBackend.fetch_logs`."""
        seen, paths = self._look(handle), SwarmPaths(Path(handle.swarm_dir))
        if seen is None:
            return
        workspace = self._at(handle)
        for index in replicas:
            if index >= len(seen.replicas):
                continue
            replica, path = seen.replicas[index].id, paths.engine_log(index)
            streams.save(workspace.deployment_log(seen.name, replica, follow=False), path)
            if follow:
                streams.follow(workspace.deployment_log(seen.name, replica, follow=True), path)

    def find(self, handle: ServingHandle) -> list[ServingHandle]:
        """See `ServingBackend.find`: by the name that follows from the tag."""
        self._seen.pop(handle.tag, None)
        seen = self._look(handle)
        if seen is None or seen.tag != handle.tag:
            return []
        parts = _parts(handle.tag, seen.replicas_wanted)
        return [handle.model_copy(update={"parts": tuple(parts)})]

    def delete(self, handle: ServingHandle) -> None:
        """See `ServingBackend.delete`. The clients' key goes with the swarm."""
        paths = SwarmPaths(Path(handle.swarm_dir))
        if place_of(paths) is not None:  # else nothing was ever asked of any workspace
            self._delete(handle)
        paths.endpoint.unlink(missing_ok=True)
        paths.api_key.unlink(missing_ok=True)

    def _delete(self, handle: ServingHandle) -> None:
        from domyn_swarm.backends.lepton.compute import end_job

        workspace, name = self._at(handle), specs.deployment_name(handle.tag)
        for job in workspace.jobs_of(handle.tag):
            end_job(workspace, job.id, grace_s=_JOB_GRACE_S)
        if self.find(handle):
            workspace.delete_deployment(name)
            self._await_gone(handle)
        workspace.delete_secret(specs.secret_name(handle.tag))

    def _await_gone(self, handle: ServingHandle) -> None:
        def probe() -> Observation:
            found = self.find(handle)
            return Observation(Phase.STARTING if found else Phase.READY)

        seen = wait_until(probe, deadline=Deadline(_GONE_S), every_s=_FRESH_S)
        if seen.phase is not Phase.READY:
            raise PlatformError(
                f"The workspace still has the deployment {specs.deployment_name(handle.tag)}.",
                hint="It may take its time; run `domyn-swarm down` again, and look at the "
                "workspace's dashboard.",
            )

    def _look(self, handle: ServingHandle) -> DeploymentSeen | None:
        at, seen = self._seen.get(handle.tag, (0.0, None))
        if at and time.monotonic() - at < _FRESH_S:
            return seen
        if place_of(SwarmPaths(Path(handle.swarm_dir))) is None:
            return None
        seen = self._at(handle).deployment(specs.deployment_name(handle.tag))
        self._seen[handle.tag] = (time.monotonic(), seen)
        return seen

    def _at(self, handle: ServingHandle) -> Workspace:
        """The workspace it was launched in."""
        return self._workspace(None, place_of(SwarmPaths(Path(handle.swarm_dir))))

    def _workspace(self, configured: str | None, place: Place | None = None) -> Workspace:
        given = credentials(configured, place)
        key = given.model_dump_json()
        if key not in self._workspaces:
            self._workspaces[key] = Workspace(given)
        return self._workspaces[key]


def _check_named_secret(name: str, workspace: Workspace) -> None:
    """The clients' key must be the secret's value, which nobody can read back.

    Raises:
        ConfigError: the secret is not there, or the key was not brought along.
    """
    if name not in workspace.secrets():
        raise ConfigError(
            f"The workspace {workspace.id} has no secret {name!r}.",
            hint="Create it there, or leave out backend.endpoint.api_token_secret_name.",
        )
    if not os.environ.get("DOMYN_SWARM_API_TOKEN"):
        raise ConfigError(
            f"The clients' key is the value of the secret {name!r}, which cannot be read back.",
            hint="Export it as DOMYN_SWARM_API_TOKEN.",
        )


def _parts(tag: str, replicas: int) -> list[Part]:
    name = specs.deployment_name(tag)
    places = [
        Part(kind="replica", index=index, platform_id=f"{name}_{index}")
        for index in range(replicas)
    ]
    return [Part(kind="endpoint", platform_id=name), *places]
