"""A real Ray cluster of several nodes on this machine: processes of one node die together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

RAY_SETTINGS = {
    # Else each read of Parquet starts 32 processes for the footers: 11 s on two cores.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "2",
    # Else a process that was idle for a second ends, and the next task starts another.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_kill_idle_workers_interval_ms": "0",
    # Else a thread asks for Prometheus now and then, over what other tests name as the proxy.
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass
class RayCluster:
    """A head without a CPU to give, and nodes with two each."""

    cluster: Any
    nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_node(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=2, object_store_memory=100_000_000))

    def kill_node(self) -> None:
        """All processes of one node, at once."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """Two nodes, and this process connected to them."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as settings:
        warnings.simplefilter("ignore")  # Ray warns of its own settings
        for name, value in RAY_SETTINGS.items():
            settings.setenv(name, value)
        import ray
        import ray.data
        from ray.cluster_utils import Cluster

        ray.data.DataContext.get_current().enable_progress_bars = False
        head = {"num_cpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False}
        cluster = RayCluster(Cluster(initialize_head=True, head_node_args=head))
        try:
            for _ in range(2):
                cluster.add_node()
            ray.init(cluster.address, log_to_driver=False, logging_level="warning")
            yield cluster
        finally:
            ray.shutdown()
            cluster.cluster.shutdown()
