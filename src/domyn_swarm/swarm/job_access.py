"""Where a job finds the model it asks: the fields of its spec that say so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from domyn_swarm.backends.endpoint.view import EndpointAddress
from domyn_swarm.config.environment import checked_endpoint, key_of_environment
from domyn_swarm.errors import ConfigError, StateError, words_of
from domyn_swarm.jobs.spec import JobSpec
from domyn_swarm.paths import JobPaths, write_private
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.job_request import JobRequest
from domyn_swarm.swarm.lost import check_not_lost, without_endpoint
from domyn_swarm.swarm.whereabouts import endpoint_address

if TYPE_CHECKING:
    from domyn_swarm.net.openai import ClientAddress


def live_address(swarm: LiveSwarm) -> EndpointAddress:
    """Where a swarm's endpoint listens.

    Raises:
        StateError: it has no endpoint now, or none that will answer again.
        RunsElsewhere: its endpoint is not reached from here.
    """
    check_not_lost(swarm, "has no endpoint")
    address = endpoint_address(swarm)
    if address is None:
        raise without_endpoint(swarm)
    return address


def client_address(swarm: LiveSwarm) -> ClientAddress:
    """What a client in this process needs to ask a swarm, its key included.

    Raises:
        StateError, RunsElsewhere: as `live_address`; or its key cannot be read.
    """
    from domyn_swarm.net.openai import ClientAddress

    address = live_address(swarm)
    try:
        key = swarm.paths.api_key.read_text("utf-8").strip()
    except OSError as error:
        raise StateError(
            f"The key of the swarm {swarm.record.name} cannot be read. "
            f"{words_of(error, swarm.paths.api_key)}",
            hint="The user who brought it up can read it, on a machine that has its home.",
        ) from error
    ca_file = None if address.ca_file is None else str(address.ca_file)
    outside = address.collector_url is None  # the platform's own endpoint: the world is between
    return ClientAddress(address.url, key, use_proxy=outside, ca_file=ca_file)


def swarm_access(swarm: LiveSwarm) -> dict[str, Any]:
    """What a job is told of a swarm.

    Raises:
        StateError: it has no endpoint now, or none that will answer again.
        RunsElsewhere: its endpoint is not reached from here.
    """
    address = live_address(swarm)
    handle = swarm.handle
    endpoint = tuple(part for part in handle.parts if part.kind == "endpoint")
    return {
        "model": swarm.plan.model,
        "serving": handle.model_copy(update={"parts": endpoint}).model_dump(mode="json"),
        "revision": swarm.plan.revision,
        "endpoint_file": str(swarm.paths.endpoint),
        "api_key_file": str(swarm.paths.api_key),
        "collector_key_file": str(swarm.paths.collector_key) if address.collector_url else None,
    }


def endpoint_access(request: JobRequest, paths: JobPaths) -> dict[str, str | None]:
    """An endpoint that is not ours; its key comes from the environment: see `keep_key`."""
    if request.endpoint is None or request.model is None:
        raise ConfigError(
            "A job needs a swarm, or --endpoint and --model.",
            hint="Name a live swarm with --name, see `domyn-swarm swarm list`.",
        )
    return {
        "model": request.model,
        "endpoint_url": checked_endpoint(request.endpoint),
        "api_key_file": str(_key_file(paths)) if key_of_environment() else None,
    }


def keep_key(spec: JobSpec, paths: JobPaths) -> None:
    """Write the key of an endpoint that is not ours where the job looks for it."""
    key = key_of_environment()
    if key and spec.api_key_file == str(_key_file(paths)):
        write_private(_key_file(paths), key)


def _key_file(paths: JobPaths) -> Path:
    return paths.root / "api_key"


def endpoint_url(swarm: LiveSwarm) -> str:
    """Where its endpoint listens now; nothing when it does not."""
    address = endpoint_address(swarm)
    return "" if address is None else address.url


def exempt_from_proxy(url: str) -> dict[str, str]:
    """Variables with which a user's program asks this endpoint itself, not through the proxy that
    the site has for what is outside; what is exempted already stays so.
    """
    known = [os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")]
    names = ",".join(dict.fromkeys(filter(None, [urlsplit(url).hostname, *known])))
    return {"NO_PROXY": names, "no_proxy": names}
