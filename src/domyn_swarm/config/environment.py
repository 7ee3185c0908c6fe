"""Settings from environment variables. `.env` is read from `$DOMYN_SWARM_HOME` only, so that a
command does the same in every current folder.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from domyn_swarm.errors import ConfigError
from domyn_swarm.paths import home


def load_dotenv() -> None:
    """Set the variables of `$DOMYN_SWARM_HOME/.env` that are not set yet."""
    path = home() / ".env"
    if not path.is_file():
        return
    from dotenv import dotenv_values

    for name, value in dotenv_values(path, interpolate=False).items():
        if value is not None:
            os.environ.setdefault(name, value)


def key_of_environment() -> str | None:
    """The API key for an endpoint that does not belong to a swarm."""
    return os.environ.get("DOMYN_SWARM_API_TOKEN") or os.environ.get("OPENAI_API_KEY")


def checked_endpoint(url: str) -> str:
    """The URL of an endpoint that does not belong to a swarm, unchanged.

    Raises:
        ConfigError: it is not an HTTP URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"The endpoint {url!r} is not a URL that begins with http:// or https://.",
            hint="For example http://127.0.0.1:8000.",
        )
    return url


def ray_address_of_environment() -> str | None:
    """The address of the Ray cluster for jobs that do not set one."""
    return os.environ.get("DOMYN_SWARM_RAY_ADDRESS") or os.environ.get("RAY_ADDRESS")
