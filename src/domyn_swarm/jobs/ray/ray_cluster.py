"""The connection to a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from domyn_swarm.errors import ConfigError, PlatformError
from domyn_swarm.jobs.inputs import check_ray_address

ADDRESS_VARIABLES = ("DOMYN_SWARM_RAY_ADDRESS", "RAY_ADDRESS")


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connects to a cluster: that of this process if it is connected, else the one at the address.

    Without an address that of the environment counts, and without that a cluster of this machine
    alone, which ends with the context.

    Raises:
        ConfigError: Ray is not installed, or the address is one for its client.
        PlatformError: nothing answers there, or no cluster can be started here.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    found = (address, *(os.environ.get(name) for name in ADDRESS_VARIABLES))
    where = next((one for one in found if one), "local")
    check_ray_address(where)
    try:
        ray.init(
            where,
            log_to_driver=False,
            logging_level=logging.WARNING,
            namespace="domyn-swarm",
            **({"include_dashboard": False} if where == "local" else {}),
        )
    except Exception as error:  # Ray has a bare one for a node that takes too long to start
        raise _no_cluster(where, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _no_cluster(where: str, error: Exception) -> PlatformError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if where == "local":
        return PlatformError(
            f"Ray cannot start a cluster on this machine: {reason}",
            hint="Ray gives it 30 s. On a machine too busy for that, start one beforehand "
            "(ray start --head) and give --ray-address auto.",
        )
    return PlatformError(
        f"There is no Ray cluster at {where}: {reason}",
        hint="See `ray status`; give --ray-address auto, or host:port.",
    )


def _ray() -> Any:  # noqa: ANN401 - the module, which has no types
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "The data backend ray needs Ray, which is not installed.",
            hint="pip install 'domyn-swarm[ray]', here and on the cluster's nodes",
        ) from error
    return ray


def own_host() -> str:
    """The address of this machine in the cluster's network."""
    return str(_ray().util.get_node_ip_address())


def fitting_workers() -> int:
    """The number of workers: one per node with a free CPU, leaving one CPU of the cluster free, if
    possible.

    The tasks that recreate blocks of a lost node need a CPU while the workers have theirs.
    """
    nodes = [float(node["Resources"].get("CPU", 0)) for node in _ray().nodes() if node["Alive"]]
    fit = sum(cpus >= 1 for cpus in nodes)
    return max(1, min(fit, int(sum(nodes)) - 1))
