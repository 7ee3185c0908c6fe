"""The spec of one replica's watchdog, as JSON. It contains the paths of key files, but no key.

replica                  index of the replica
host                     address the engine binds and is reached at; empty: the node's own name
port_from                where the search for a free port begins
argv, env                the engine's command ({host}, {port} and {node_port} are filled in) and
                         environment
key_env, key_file        variable that carries the clients' key into the engine; its file
collector_key_file       the watchdogs' key to the collector
endpoint_file            where the collector's address is found, read again whenever it fails
engine_log               what the engine prints is appended here
health_path              GET, 2xx means alive
metrics_path             GET, Prometheus text; none: nothing is known of requests
running_metric, waiting_metric, progress_metrics
                         names in it (see `planning.plan.ServingSpec`)
reported_metrics         what of it is reported: field of the report, name in it
first_request            path and body; a status below 500 is needed before the first `ready`
failure_patterns         known causes of death, searched in the end of the log
probe_interval, startup_probe_interval, http_timeout
                         seconds between probes once ready, and before; bound of one probe
readiness_timeout        seconds until an engine that is not ready is restarted, unless it loads
                         (its log grows, or it reads from its disk): then six times as many
quiet_seconds            without either for so long it does not load any more
restart_policy           on-failure: unless it exited with 0; always; never
max_restarts             in a row: an engine that answered requests starts from zero, until there
                         were four times as many; one that was ready for ten minutes always does
early_deaths             in a row, before it was ready, after which an engine is to be tried on
                         another node (exit code 5); none: there is none to try
restart_backoff_initial, restart_backoff_max
                         seconds before the first restart, doubled each time, at most
unhealthy_restart_after  seconds of failed probes until an engine is restarted
progress_timeout         seconds without progress while requests wait; none: not judged
ray                      of a replica that Ray holds together: the GPUs that it must have, and how
                         often and how patiently it is asked (see `planning.plan.RayPlan`)
kill_grace_seconds       seconds from SIGTERM to SIGKILL
drain_seconds            seconds to leave the router and finish requests, before SIGTERM
heartbeat_seconds        a report is sent at least so often
final_report_seconds     how long a final state is tried to be reported
ledger_file              where this replica's watchdogs write what its time went to
gpus                     of this replica; power_gpus: those that `nvidia-smi` shows here (0: the
                         replica has none, or has nodes that this watchdog is not on)
start_phases             phase, pattern: lines of the engine's log that show how far its start is
orphaned_seconds         without an endpoint for so long the watchdog ends, and its engine; none:
                         the task that runs the watchdog ends it
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from domyn_swarm.backends.ledger import written_folder
from domyn_swarm.errors import PlatformError
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan

HEARTBEAT_S = 5.0
_STARTUP_PROBE_S = 0.3
_FINAL_REPORT_S = 60.0
_QUIET_S = 120.0


def copy_watchdog(program: Path) -> None:
    """Copy the files that replicas run: the program and the modules beside it.

    Raises:
        OSError: it cannot be written.
        PlatformError: the installation lacks it.
    """
    _copy("watchdog", program, "watchdog_rules", "watchdog_ledger", "restart_budget")


def copy_follower(program: Path) -> None:
    """Copy the files that the other nodes of a replica run: the program and the module beside it.

    Raises:
        OSError: it cannot be written.
        PlatformError: the installation lacks it.
    """
    _copy("follower", program, "restart_budget")


def _copy(name: str, program: Path, *beside: str) -> None:
    shutil.copyfile(_source(name), program)
    for other in map(_source, beside):
        shutil.copyfile(other, program.with_name(other.name))


def _source(name: str) -> Path:
    found = importlib.util.find_spec(f"domyn_swarm.{name}")
    if found is None or found.origin is None:
        raise PlatformError(f"{name}.py is missing: the installation of domyn-swarm is incomplete.")
    return Path(found.origin)


def heartbeat_s(plan: DeploymentPlan) -> float:
    """Seconds between two reports of a watchdog if nothing changes."""
    return min(plan.watchdog.probe_interval, HEARTBEAT_S)


def engine_environment(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths
) -> dict[str, str]:
    """The variables that engines get in addition to the node's environment. The user's `env` takes
    precedence.

    Ray accepts everyone who reaches its port, unless it is configured to require a token (2.52 or
    newer).
    """
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(paths.ray_token)}
    own = {} if plan.watchdog.ray is None else ray
    return {**ctx.shared_env, **own, **ctx.serving_spec.env, **plan.env}


def build_watchdog_spec(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths, replica: int, *, host: str
) -> dict[str, Any]:
    """The spec of one replica's watchdog."""
    serving, watchdog = ctx.serving_spec, plan.watchdog
    first = serving.first_request
    gpus = plan.layout.gpus_per_replica
    return {
        "replica": replica,
        "host": host,
        "port_from": plan.port_from,
        "argv": [
            str(replica) if word == "{replica}" else word.replace("{python}", ctx.interpreter)
            for word in serving.argv
        ],
        "env": engine_environment(plan, ctx, paths),
        "key_env": serving.key_env,
        "key_file": str(paths.api_key),
        "collector_key_file": str(paths.collector_key),
        "endpoint_file": str(paths.endpoint),
        "engine_log": str(paths.engine_log(replica)),
        "health_path": watchdog.http_path or serving.health_path,
        "metrics_path": serving.metrics_path,
        "running_metric": serving.running_metric,
        "waiting_metric": serving.waiting_metric,
        "progress_metrics": list(serving.progress_metrics),
        "reported_metrics": serving.reported_metrics,
        "first_request": None if first is None else first.model_dump(mode="json"),
        "failure_patterns": [known.model_dump() for known in serving.failure_patterns],
        **watchdog.model_dump(exclude={"http_path"}),
        "quiet_seconds": min(_QUIET_S, watchdog.readiness_timeout, plan.wait_endpoint_s),
        "startup_probe_interval": min(_STARTUP_PROBE_S, watchdog.probe_interval),
        "drain_seconds": watchdog.kill_grace_seconds,
        "early_deaths": None,
        "heartbeat_seconds": heartbeat_s(plan),
        "final_report_seconds": _FINAL_REPORT_S,
        "orphaned_seconds": None,
        "ledger_file": str(written_folder(paths, ctx.tag) / f"replica-{replica}.jsonl"),
        "gpus": gpus,
        "power_gpus": gpus if plan.layout.nodes_per_replica == 1 else 0,
        "start_phases": [known.model_dump() for known in serving.start_phases],
    }
