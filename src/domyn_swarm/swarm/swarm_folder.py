"""The files of a swarm's folder when it is launched, and when it has ended."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from domyn_swarm.backends import ledger
from domyn_swarm.backends.endpoint.view import Ended, read_ended
from domyn_swarm.backends.job_end import read_tail
from domyn_swarm.logs import get_logger
from domyn_swarm.model import utc_now
from domyn_swarm.paths import SwarmPaths, private_dir, write_private, write_private_once
from domyn_swarm.swarm.factory import LiveSwarm

if TYPE_CHECKING:
    from domyn_swarm.config import DomynLLMSwarmConfig

_log = get_logger(__name__)


def write_launch_files(swarm: LiveSwarm, config: DomynLLMSwarmConfig) -> None:
    """Write the configuration, the plan, the keys, and the swarm's entry in the ledger.

    Raises:
        OSError: the folder cannot be written.
    """
    from domyn_swarm.config import dump_yaml

    paths = swarm.paths
    _clear_last_run(paths, swarm.record.tag)
    write_private(paths.config, dump_yaml(config))
    write_private(paths.plan, swarm.plan.model_dump_json(indent=2))
    write_private(paths.api_key, _chosen_key() or secrets.token_urlsafe(32))
    if config.notify.url:
        write_private(paths.notify_url, config.notify.url)
    write_private(paths.collector_key, secrets.token_urlsafe(32))
    write_private_once(paths.metrics_key, secrets.token_urlsafe(32))
    record, layout = swarm.record, swarm.plan.layout
    if record.backend == "lepton":  # no program of ours runs beside its engines
        return
    entry = ledger.SwarmEntry(
        tag=record.tag,
        name=record.name,
        backend=record.backend,
        user=user_name(),
        swarm_dir=record.swarm_dir,
        model=swarm.plan.model,
        gpus_per_replica=layout.gpus_per_replica,
        created_at=record.created_at,
    )
    ledger.enter(entry, swarm.plan.launched_replicas)


def user_name(uid: int | None = None) -> str:
    """The name of a user, by default of the user that runs this; the uid if the system has no name
    for it.
    """
    number = os.getuid() if uid is None else uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _chosen_key() -> str | None:
    """The clients' key that the user provides; otherwise one is generated."""
    return os.environ.get("DOMYN_SWARM_API_TOKEN") or os.environ.get("VLLM_API_KEY")


def _clear_last_run(paths: SwarmPaths, tag: str) -> None:
    """Remove the serving state of an earlier swarm of the same name, so that it is not taken for
    this one's.
    """
    private_dir(paths.root)
    for folder in (paths.endpoint.parent, paths.scripts, paths.api_key.parent, paths.logs):
        shutil.rmtree(folder, ignore_errors=True)
    paths.watchdog_db.unlink(missing_ok=True)
    for launcher in set(paths.root.glob("launcher-*.json")) - {paths.launcher(tag)}:
        launcher.unlink(missing_ok=True)


def note_end(swarm: LiveSwarm) -> None:
    """Record that `down` ended the swarm: jobs that run elsewhere would wait for its endpoint."""
    paths, tag = swarm.paths, swarm.record.tag
    if not paths.root.exists() or read_ended(paths, tag) is not None:
        return
    ended = Ended(tag=tag, by="down", reason="`domyn-swarm down` stopped it", at=utc_now())
    try:
        write_private(paths.ended, ended.model_dump_json())
    except OSError as error:
        _log.warning("jobs elsewhere do not learn that %s ended: %s", swarm.record.name, error)


def withdraw_metrics(swarm: LiveSwarm) -> None:
    """Remove the files of a killed endpoint: it is no scrape target any more, and raises no
    alarm.
    """
    metrics, name = swarm.plan.metrics, swarm.paths.public_name
    left = [(metrics.discovery_dir or swarm.paths.scrape_targets) / f"{name}.json"]
    if metrics.textfile_dir is not None:
        left.append(metrics.textfile_dir / f"{name}.prom")
    for file in left:
        with contextlib.suppress(OSError):  # usually of another machine
            file.unlink(missing_ok=True)


_OURS = "domyn-swarm: "


def script_failure(paths: SwarmPaths) -> tuple[str, Path] | None:
    """The error of the first of a swarm's scripts that could not start, and its log; None: each has
    started, as far as is known.
    """
    for log in (paths.endpoint_log, *sorted(paths.slurm_logs.glob("replica-*.log"))):
        last = read_tail(log).strip().rpartition("\n")[2]
        if last.startswith(_OURS):
            return last.removeprefix(_OURS), log
    return None
