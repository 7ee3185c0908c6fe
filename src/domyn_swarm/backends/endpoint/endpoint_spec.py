"""The settings of the endpoint program, but for the keys, which it reads from their files."""

from __future__ import annotations

from pathlib import Path

from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths


class ElasticSpec(Record):
    """Settings of a swarm whose size follows the work; `EndpointSpec.replicas` is the maximum."""

    least: int  # minimum number of replicas; 0: it sleeps without work
    keep_s: float | None = None  # how long an idle replica is kept; None: as long as a start takes
    hold_s: float = 30.0  # how long a request waits for the first replica
    full_at: int = 64  # requests in flight that one replica takes
    ledger_entry: Path  # folder of the records of its size, see `backends.ledger`


class EndpointSpec(Record):
    """The endpoint program's settings; the same for every model."""

    tag: str  # of the swarm: a view that another swarm of the same name left is ignored
    host: str  # to listen on and be reached at; empty: every interface, and the node's own name
    port: int | None  # None: any free port
    replicas: int  # reports of other replicas are refused; `scale` rewrites it
    elastic: ElasticSpec | None = None  # None: always `replicas` of them
    stale_after_s: float  # a replica whose last report is older is removed from routing
    health_path: str  # of the engines
    metrics_path: str | None = None
    running_metric: str | None = None
    waiting_metric: str | None = None
    generated_tokens_metric: str | None = None
    preemptions_metric: str | None = None
    kv_cache_metric: str | None = None
    idle_timeout_s: float | None = None  # the swarm ends itself after so long without use
    policy: str
    max_concurrent: int
    queue_size: int
    retries: int  # attempts per request, as the router counts (see `router`)
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None = None  # certificates that clients trust; None: tls_cert itself
    api_key_file: Path
    collector_key_file: Path
    # From here on: metrics.
    metrics_key_file: Path | None = None  # None: nobody may scrape them
    textfile_dir: Path | None = None
    discovery_dir: Path | None = None
    model: str = ""
    engine: str = ""
    backend: str = ""
    gpus_per_replica: int = 0


def configured_replicas(paths: SwarmPaths) -> int | None:
    """How many replicas the endpoint of a swarm is configured for; None: it has no endpoint of
    ours.
    """
    try:
        return EndpointSpec.model_validate_json(paths.endpoint_spec.read_text("utf-8")).replicas
    except (OSError, ValueError):
        return None
