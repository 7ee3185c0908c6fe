"""The workspace and its token: from the configuration, the environment, or `lep login`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from domyn_swarm.backends.lepton import specs
from domyn_swarm.backends.protocols import Located
from domyn_swarm.errors import ConfigError, MissingExtra
from domyn_swarm.model import Location, Reach, Record
from domyn_swarm.paths import SwarmPaths, write_private

_ID, _URL = "LEPTON_WORKSPACE_ID", "LEPTON_WORKSPACE_URL"
_TOKENS = ("LEPTONAI_API_TOKEN", "LEPTON_WORKSPACE_TOKEN")


class LaunchedIn(Record):
    """The workspace in which a swarm was launched: `serving/workspace.json`. Contains no token."""

    workspace_id: str
    url: str | None = None


class Credentials(Record):
    """What the SDK needs to reach a workspace. Never written to a file."""

    workspace_id: str
    url: str | None
    token: str

    @override
    def __repr__(self) -> str:
        return f"Credentials({self.workspace_id})"


def workspace_of(paths: SwarmPaths) -> LaunchedIn | None:
    """The workspace in which a swarm was launched; None: it never was."""
    try:
        return LaunchedIn.model_validate_json(paths.workspace.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def record_workspace(paths: SwarmPaths, workspace: LaunchedIn) -> None:
    """Record the workspace of a swarm. Call it before the launch: `down` has to ask there."""
    write_private(paths.workspace, workspace.model_dump_json())


def swarm_of(job_dir: str) -> SwarmPaths:
    """The folder of the swarm to which a job's folder belongs."""
    return SwarmPaths(Path(job_dir).parent.parent)


def credentials(configured: str | None, launched_in: LaunchedIn | None = None) -> Credentials:
    """The credentials of the workspace in which a swarm was launched, else of the configured one,
    else of the one that the environment or `lep login` set.

    Raises:
        ConfigError: there is no workspace or no token, or the environment sets another workspace.
    """
    own, _, own_token = (os.environ.get(_ID) or "").partition(":")
    wanted = (launched_in.workspace_id if launched_in else None) or configured
    if wanted and own and own != wanted:
        raise ConfigError(
            f"The workspace is {wanted}, but {_ID} is {own}.",
            hint=f"Set {_ID} and the token to those of {wanted}.",
        )
    workspace = wanted or own or _saved_id()
    if not workspace:
        raise ConfigError(
            "No workspace is set.", hint=f"Set backend.workspace_id or {_ID}, or run `lep login`."
        )
    saved = _saved(workspace)
    given = next((os.environ[name] for name in _TOKENS if os.environ.get(name)), None)
    token = given or own_token or getattr(saved, "auth_token", None)
    if not token:
        raise ConfigError(
            f"There is no token for the workspace {workspace}.",
            hint=f"Export {_TOKENS[0]}, or run `lep login`.",
        )
    recorded_url = launched_in.url if launched_in else None
    url = recorded_url or os.environ.get(_URL) or getattr(saved, "url", None)
    return Credentials(workspace_id=workspace, url=url, token=token)


def _saved_id() -> str | None:
    from domyn_swarm.backends.lepton.sdk import logged_in

    saved = logged_in(None)
    return None if saved is None else saved.id_


def _saved(workspace: str) -> object:
    from domyn_swarm.backends.lepton.sdk import logged_in

    return logged_in(workspace)


class InWorkspace(Located):
    """A workspace, which every process with a token for it can reach."""

    @override
    def location(self, options: Mapping[str, Any]) -> Location:
        given = credentials(specs.section(dict(options)).workspace_id)
        return Location(kind="workspace", name=given.workspace_id)

    @override
    def reach(self, location: Location | None) -> Reach:
        if location is None:
            return Reach.HERE
        try:
            credentials(None, LaunchedIn(workspace_id=location.name))
        except (ConfigError, MissingExtra):
            return Reach.ELSEWHERE
        return Reach.HERE
