"""The platform's SDK, imported here and nowhere else, when it is first needed."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

from domyn_swarm.errors import MissingExtra, PlatformError

TESTED = ((0, 47, 1), (0, 48, 0))  # from the first one on, below the second
_INSTALL = "pip install 'domyn-swarm[lepton]'"


def version() -> str:
    """The installed version.

    Raises:
        MissingExtra: none is.
        PlatformError: it is one that this program was never tried with.
    """
    try:
        found = importlib.metadata.version("leptonai")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(
            "The backend lepton needs the package leptonai, which is not installed.", hint=_INSTALL
        ) from error
    check_version(found)
    return found


def check_version(found: str) -> None:
    """Refuse versions that were not tested: the SDK has moved its modules before.

    Raises:
        PlatformError: it is one of them.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    first, beyond = TESTED
    if not first <= numbers < beyond:
        least, below = (".".join(map(str, one)) for one in TESTED)
        raise PlatformError(
            f"leptonai {found} is installed; this program works with {least} up to below {below}.",
            hint=_INSTALL,
        )


class Sdk:
    """What is used of it. Untyped: its annotations do not hold."""

    def __init__(self) -> None:
        version()
        import requests
        from leptonai.api.v2 import utils
        from leptonai.api.v2.api_resource import ClientError, ServerError
        from leptonai.api.v2.client import APIClient
        from leptonai.api.v2.types.deployment import LeptonDeployment
        from leptonai.api.v2.types.job import LeptonJob
        from leptonai.api.v2.types.secret import SecretItem

        self.client: Any = APIClient
        self.deployment: Any = LeptonDeployment
        self.job: Any = LeptonJob
        self.secret: Any = SecretItem
        self.refused: Any = (ClientError, ServerError)
        self.workspace_errors: Any = utils.WorkspaceError
        self.no_answer: Any = requests.exceptions.RequestException


def logged_in(workspace: str | None) -> Any:  # noqa: ANN401 - the SDK's
    """What `lep login` saved of a workspace, or of the current one; None: nothing.

    Raises:
        MissingExtra: the SDK is not installed.
    """
    version()
    from leptonai.api.v2.workspace_record import WorkspaceRecord

    return WorkspaceRecord.current() if workspace is None else WorkspaceRecord.get(workspace)
