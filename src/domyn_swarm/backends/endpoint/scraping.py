"""Who may read the swarm's metrics, and how Prometheus learns where they are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.supervision import RouterFigures
from domyn_swarm.backends.endpoint.use_meter import JobsFolder
from domyn_swarm.logs import get_logger
from domyn_swarm.model import utc_now
from domyn_swarm.paths import SwarmPaths, private_dir

_log = get_logger(__name__)

_FRESH_S = 1.0  # repeated requests within this time get the same text
_TEXTFILE_EVERY_S = 15.0


class SwarmMetrics:
    """The current text, for scrapers and for node_exporter's textfile collector."""

    def __init__(
        self,
        spec: EndpointSpec,
        paths: SwarmPaths,
        collector: Collector,
        router: Callable[[], Awaitable[RouterFigures | None]],
    ) -> None:
        self._spec = spec
        self._name = paths.root.name
        self._public_name = paths.public_name
        self._collector = collector
        self._router = router
        self._jobs = JobsFolder(paths.jobs)
        self._asking = asyncio.Lock()
        self._text = b""
        self._text_at = -_FRESH_S

    async def text(self) -> bytes:
        """All metrics now."""
        async with self._asking:
            if time.monotonic() - self._text_at >= _FRESH_S:
                self._text = await self._read()
                self._text_at = time.monotonic()
            return self._text

    async def _read(self) -> bytes:
        # imported here: where nothing scrapes, the Prometheus library is not needed
        from domyn_swarm.backends.endpoint.metrics import Readings, exposition

        router = await self._router()
        jobs = await asyncio.to_thread(self._jobs.read, utc_now())
        readings = Readings(
            swarm=self._name,
            spec=self._spec,
            replicas_wanted=len(self._collector.wanted),
            view=self._collector.view(),
            router=router,
            jobs=jobs,
            uses=self._collector.uses(jobs),
        )
        return await asyncio.to_thread(exposition, readings)

    async def keep_textfile(self, folder: Path) -> None:
        """Write the file for node_exporter until cancelled; then remove it."""
        path = folder / f"{self._public_name}.prom"
        try:
            while True:
                try:
                    await asyncio.to_thread(_write_public, path, await self.text())
                except OSError as error:
                    _log.warning("cannot write %s: %s", path, error)
                except Exception:  # noqa: BLE001 - the endpoint serves all the same
                    _log.exception("there are no metrics for %s", path)
                await asyncio.sleep(_TEXTFILE_EVERY_S)
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


class Discovery:
    """Announces the target to Prometheus: a file for its `file_sd_configs`, beside those of the
    other swarms or where the configuration says.
    """

    def __init__(self, paths: SwarmPaths, folder: Path | None) -> None:
        self._name = paths.root.name
        self._ours = folder is None
        self._path = (folder or paths.scrape_targets) / f"{paths.public_name}.json"

    def announce(self, target: str) -> None:
        """Write the file: the collector is at `target` (host:port) from now on."""
        targets = [{"targets": [target], "labels": {"swarm": self._name}}]
        try:
            if self._ours:
                private_dir(self._path.parent)
            _write_public(self._path, json.dumps(targets, indent=2).encode())
        except OSError as error:
            _log.warning("cannot write %s: %s", self._path, error)

    def withdraw(self) -> None:
        """Remove the file: there is nothing left to scrape."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _write_public(path: Path, content: bytes) -> None:
    """Write a file atomically, readable by everybody. Readers skip names that begin with a dot."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
