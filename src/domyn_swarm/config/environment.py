"""What the environment says. `.env` is read in `$DOMYN_SWARM_HOME` and nowhere else: the current
folder decides nothing.
"""

from __future__ import annotations

import os

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


def ray_address_of_environment() -> str | None:
    """The Ray cluster of jobs that name none."""
    return os.environ.get("DOMYN_SWARM_RAY_ADDRESS") or os.environ.get("RAY_ADDRESS")
