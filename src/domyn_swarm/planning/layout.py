"""How replicas lie on nodes: arithmetic, without any platform."""

from __future__ import annotations

from domyn_swarm.errors import ConfigError
from domyn_swarm.planning.plan import Layout


def lay_out(replicas: int, gpus_per_replica: int, gpus_per_node: int) -> Layout:
    """Place the replicas' GPUs on nodes that have `gpus_per_node` each.

    Exactly `replicas` replicas run, whether or not they fill whole nodes. A replica that needs
    more than one node has all GPUs of each: tensor parallel inside a node, pipeline parallel
    across nodes.

    Raises:
        ConfigError: the replica fits no whole number of nodes, or there would be none.
    """
    if not isinstance(replicas, int) or replicas < 1:
        raise ConfigError(
            f"replicas is {replicas!r}, and must be a whole number of 1 or more.",
            hint="`domyn-swarm down` stops a swarm.",
        )
    per_replica = gpus_per_replica
    if per_replica <= gpus_per_node or per_replica == 0:
        fits = gpus_per_node // per_replica if per_replica else replicas
        per_node = max(1, min(replicas, fits))
        return Layout(
            replicas=replicas,
            gpus_per_replica=per_replica,
            gpus_per_node=gpus_per_node,
            replicas_per_node=per_node,
            nodes_per_replica=1,
            nodes=-(-replicas // per_node),
            tensor_parallel=max(1, per_replica),
            pipeline_parallel=1,
        )
    if gpus_per_node == 0 or per_replica % gpus_per_node:
        raise ConfigError(
            f"gpus_per_replica is {per_replica}, which is no multiple of gpus_per_node "
            f"({gpus_per_node}).",
            hint="A replica that spans nodes takes whole ones.",
        )
    nodes_per_replica = per_replica // gpus_per_node
    return Layout(
        replicas=replicas,
        gpus_per_replica=per_replica,
        gpus_per_node=gpus_per_node,
        replicas_per_node=0,
        nodes_per_replica=nodes_per_replica,
        nodes=replicas * nodes_per_replica,
        tensor_parallel=gpus_per_node,
        pipeline_parallel=nodes_per_replica,
    )
