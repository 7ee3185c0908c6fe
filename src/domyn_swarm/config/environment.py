"""What the environment says. `.env` is read in `$DOMYN_SWARM_HOME` and nowhere else: the current
folder decides nothing.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from domyn_swarm.errors import ConfigError
from domyn_swarm.paths import home


def load_dotenv() -> None:
    """Set the variables of `$DOMYN_SWARM_HOME/.env` that the environment does not have yet."""
    path = home() / ".env"
    if not path.is_file():
        return
    from dotenv import dotenv_values

    for name, value in dotenv_values(path, interpolate=False).items():
        if value is not None:
            os.environ.setdefault(name, value)


def key_of_environment() -> str | None:
    """The key of an endpoint that is not a swarm's."""
    return os.environ.get("DOMYN_SWARM_API_TOKEN") or os.environ.get("OPENAI_API_KEY")


def checked_endpoint(url: str) -> str:
    """The URL of an endpoint that is not a swarm's.

    Raises:
        ConfigError: it is none.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"The endpoint {url!r} is no URL that begins with http:// or https://.",
            hint="For example http://127.0.0.1:8000.",
        )
    return url


def ray_address_of_environment() -> str | None:
    """The Ray cluster of jobs that name none."""
    return os.environ.get("DOMYN_SWARM_RAY_ADDRESS") or os.environ.get("RAY_ADDRESS")
