"""The files that announce where the endpoint listens, for clients, replicas and Prometheus."""

from __future__ import annotations

import asyncio
import socket

from domyn_swarm import open_files
from domyn_swarm.backends.endpoint.address import own_address
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.router import Admission
from domyn_swarm.backends.endpoint.scraping import Discovery
from domyn_swarm.backends.endpoint.view import EndpointAddress
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.process_identity import this_process

_log = get_logger(__name__)

_AGAIN_S = 2.0


class Announcement:
    """Keeps the address files up to date. A write that fails is repeated until it succeeds."""

    def __init__(self, paths: SwarmPaths, spec: EndpointSpec) -> None:
        self._paths = paths
        self._spec = spec
        self._name = spec.host or own_address()
        self._discovery = Discovery(paths, spec.discovery_dir)
        self._port: int | None = None
        self._news = asyncio.Event()

    def moved(self, port: int) -> None:
        """Set the port that the router listens on from now on."""
        self._port = port
        self._news.set()

    async def keep(self, collector_port: int) -> None:
        """Write the address whenever it changed, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                self._write(collector_port)
            except OSError as error:
                _log.warning("cannot write %s: %s", self._paths.endpoint, error)
                self._news.set()
                await asyncio.sleep(_AGAIN_S)

    def _write(self, collector_port: int) -> None:
        scheme = "https" if self._spec.tls_cert else "http"
        address = EndpointAddress(
            url=f"{scheme}://{self._name}:{self._port}",
            collector_url=f"http://{self._name}:{collector_port}",
            node=socket.gethostname(),
            process=this_process(),
            ca_file=self._spec.tls_ca or self._spec.tls_cert,
            open_files=open_files.limits(),
            admits=Admission(self._spec.max_concurrent, self._spec.queue_size).total,
        )
        write_private(self._paths.endpoint, address.model_dump_json(indent=2))
        self._discovery.announce(f"{self._name}:{collector_port}")

    def withdraw(self) -> None:
        """Remove the files, so that clients do not send to a program that takes over the port."""
        try:
            self._paths.endpoint.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("cannot remove %s: %s", self._paths.endpoint, error)
        self._discovery.withdraw()
