"""What the endpoint program is told: everything but the keys, which it reads from their files."""

from __future__ import annotations

from pathlib import Path

from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths


class ElasticSpec(Record):
    """Of a swarm whose size follows the work; `EndpointSpec.replicas` are the most."""

    least: int  # replicas; 0: it sleeps without work
    keep_s: float | None = None  # an idle replica is kept for so long; None: as a start takes
    hold_s: float = 30.0  # a request waits so long for the first replica
    full_at: int = 64  # requests in flight that one replica takes at once
    ledger_entry: Path  # the folder in which its size is noted, see `backends.ledger`


class EndpointSpec(Record):
    """The endpoint program's settings; the same for every model."""

    tag: str  # of the swarm: a view that another swarm of the same name left is not believed
    host: str  # to listen on and be reached at; empty: every interface, the node's own name
    port: int | None  # None: any free one
    replicas: int  # reports of others are refused; `scale` rewrites it
    elastic: ElasticSpec | None = None  # None: always `replicas` of them
    stale_after_s: float  # a replica that has not reported for so long serves no more
    health_path: str  # of the engines
    metrics_path: str | None = None
    running_metric: str | None = None
    waiting_metric: str | None = None
    generated_tokens_metric: str | None = None
    preemptions_metric: str | None = None
    kv_cache_metric: str | None = None
    idle_timeout_s: float | None = None  # unused for so long, the swarm ends itself
    policy: str
    max_concurrent: int
    queue_size: int
    retries: int  # attempts per request, as the router counts (see `router`)
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None = None  # that clients trust; None: tls_cert itself
    api_key_file: Path
    collector_key_file: Path
    # From here on, of its metrics.
    metrics_key_file: Path | None = None  # None: nobody may scrape them
    textfile_dir: Path | None = None
    discovery_dir: Path | None = None
    model: str = ""
    engine: str = ""
    backend: str = ""
    gpus_per_replica: int = 0


def replicas_told(paths: SwarmPaths) -> int | None:
    """How many replicas the endpoint of a swarm follows; None: it has no endpoint of ours."""
    try:
        return EndpointSpec.model_validate_json(paths.endpoint_spec.read_text("utf-8")).replicas
    except (OSError, ValueError):
        return None
