"""Which workspace, and with which token: from the configuration, the environment, `lep login`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domyn_swarm.backends.lepton import specs
from domyn_swarm.errors import ConfigError, MissingExtra
from domyn_swarm.model import Location, Reach, Record
from domyn_swarm.paths import SwarmPaths, write_private

_ID, _URL = "LEPTON_WORKSPACE_ID", "LEPTON_WORKSPACE_URL"
_TOKENS = ("LEPTONAI_API_TOKEN", "LEPTON_WORKSPACE_TOKEN")


class Place(Record):
    """Where a swarm was launched: `serving/workspace.json`. Holds no token."""

    workspace_id: str
    url: str | None = None


class Credentials(Record):
    """What the SDK is given. Never written anywhere."""

    workspace_id: str
    url: str | None
    token: str

    def __repr__(self) -> str:
        return f"Credentials({self.workspace_id})"


def place_of(paths: SwarmPaths) -> Place | None:
    """Where this swarm was launched; None: it never was."""
    try:
        return Place.model_validate_json(paths.workspace.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def remember(paths: SwarmPaths, place: Place) -> None:
    """Write down where the swarm is launched, before anything is: who stops it must ask there."""
    write_private(paths.workspace, place.model_dump_json())


def swarm_of(job_dir: str) -> SwarmPaths:
    """The swarm that a job's folder belongs to."""
    return SwarmPaths(Path(job_dir).parent.parent)


def credentials(configured: str | None, place: Place | None = None) -> Credentials:
    """Of the workspace a swarm was launched in, else of the configured one, else the environment's.

    Raises:
        ConfigError: no workspace or no token is known, or two workspaces are meant.
    """
    own, _, own_token = (os.environ.get(_ID) or "").partition(":")
    wanted = (place.workspace_id if place else None) or configured
    if wanted and own and own != wanted:
        raise ConfigError(
            f"The workspace is {wanted}, but {_ID} says {own}.",
            hint=f"Set {_ID} and the token to those of {wanted}.",
        )
    workspace = wanted or own or _saved_id()
    if not workspace:
        raise ConfigError(
            "No workspace is named.", hint=f"Set backend.workspace_id or {_ID}, or run `lep login`."
        )
    saved = _saved(workspace)
    given = next((os.environ[one] for one in _TOKENS if os.environ.get(one)), None)
    token = given or own_token or getattr(saved, "auth_token", None)
    if not token:
        raise ConfigError(
            f"There is no token for the workspace {workspace}.",
            hint=f"Export {_TOKENS[0]}, or run `lep login`.",
        )
    url = (place.url if place else None) or os.environ.get(_URL) or getattr(saved, "url", None)
    return Credentials(workspace_id=workspace, url=url, token=token)


def _saved_id() -> str | None:
    from domyn_swarm.backends.lepton.sdk import logged_in

    saved = logged_in(None)
    return None if saved is None else saved.id_


def _saved(workspace: str) -> object:
    from domyn_swarm.backends.lepton.sdk import logged_in

    return logged_in(workspace)


class InWorkspace:
    """See `Located`: a workspace, which can be asked by whoever has a token for it."""

    def location(self, options: Mapping[str, Any]) -> Location:
        """See `Located.location`."""
        given = credentials(specs.section(dict(options)).workspace_id)
        return Location(kind="workspace", name=given.workspace_id)

    def reach(self, location: Location | None) -> Reach:
        """See `Located.reach`."""
        if location is None:
            return Reach.HERE
        try:
            credentials(None, Place(workspace_id=location.name))
        except (ConfigError, MissingExtra):
            return Reach.ELSEWHERE
        return Reach.HERE
