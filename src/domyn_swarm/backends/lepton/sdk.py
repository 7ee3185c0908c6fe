"""The platform's SDK. It is imported only here, when it is first used."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

from domyn_swarm.errors import MissingExtra, PlatformError

TESTED = ((0, 47, 1), (0, 48, 0))  # at least the first, below the second
_INSTALL = "pip install 'domyn-swarm[lepton]'"


def version() -> str:
    """The installed version of the SDK.

    Raises:
        MissingExtra: the SDK is not installed.
        PlatformError: the version is not a tested one.
    """
    try:
        installed = importlib.metadata.version("leptonai")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(
            "The backend lepton needs the package leptonai, which is not installed.", hint=_INSTALL
        ) from error
    check_version(installed)
    return installed


def check_version(installed: str) -> None:
    """Refuse versions that were not tested: earlier releases of the SDK have moved its modules.

    Raises:
        PlatformError: the version is not a tested one.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", installed)[:3])
    first, beyond = TESTED
    if not first <= numbers < beyond:
        least, below = (".".join(map(str, bound)) for bound in TESTED)
        raise PlatformError(
            f"leptonai {installed} is installed; this program needs at least {least} and less "
            f"than {below}.",
            hint=_INSTALL,
        )


class Sdk:
    """The parts of the SDK that we use. Untyped, because the SDK's annotations are wrong."""

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
    """What `lep login` saved for a workspace (None: for the current one); None: nothing.

    Raises:
        MissingExtra: the SDK is not installed.
    """
    version()
    from leptonai.api.v2.workspace_record import WorkspaceRecord

    return WorkspaceRecord.current() if workspace is None else WorkspaceRecord.get(workspace)
