"""The common part of the programs that run a job: their spec, their event loop, their endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domyn_swarm import __version__, open_files
from domyn_swarm.batch.run.session import EndpointAccess, Meter
from domyn_swarm.errors import ConfigError, JobError, SwarmError
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.probing import Clock

if TYPE_CHECKING:
    from domyn_swarm.backends.protocols import ServingHandle


def read_spec(paths: JobPaths) -> JobSpec:
    """The job's specification.

    Raises:
        ConfigError: this node's domyn-swarm is older than the submitter's.
    """
    spec = JobSpec.model_validate_json(paths.spec.read_text("utf-8"))
    check_version(spec)
    return spec


def check_version(spec: JobSpec) -> None:
    """Refuse a job that is newer than this program.

    Raises:
        ConfigError: this node's domyn-swarm is older than the submitter's.
    """
    if _parts(__version__) < _parts(spec.min_version):
        raise ConfigError(
            f"This node has domyn-swarm {__version__}; the job came from {spec.min_version}.",
            hint="Install the same version on the nodes, or set backend.venv_path.",
        )


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:3] if part.isdigit()]


def event_loop_runner() -> asyncio.Runner:
    """Runs a job's coroutine in a process that exists only for it."""
    _collect_garbage_seldom()
    open_files.raise_limit()
    return event_loop()


def event_loop() -> asyncio.Runner:
    """Runs a coroutine on the fastest available event loop."""
    try:
        import uvloop
    except ImportError:  # not on this platform: slower, otherwise the same
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _collect_garbage_seldom() -> None:
    """Requests in flight are thousands of objects that the collector would examine again and again:
    with its defaults that is a third of a worker's CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def access_of(spec: JobSpec) -> EndpointAccess:
    """The address and credentials of the job's endpoint.

    Raises:
        JobError: a key cannot be read; its file is named.
    """
    with _reading_keys(spec):
        key = _key_of(spec)
    key_now = None if spec.api_key_file is None else partial(_key_of, spec)
    if spec.endpoint_file is None:
        url = (spec.endpoint_url or "").rstrip("/").removesuffix("/v1")
        return EndpointAccess(
            lambda: url, key, use_proxy=True, key_now=key_now, dispatch=spec.dispatch
        )
    place = Path(spec.endpoint_file)
    meter = None
    if spec.collector_key_file is not None:
        with _reading_keys(spec):
            collector_key = Path(spec.collector_key_file).read_text("utf-8").strip()
        recorded = SwarmPaths(place.parent.parent).replicas.read_bytes
        meter = Meter(_locator(place, "collector_url"), collector_key, recorded)
    outside = spec.collector_key_file is None  # the platform's own endpoint, over the internet
    return EndpointAccess(
        _locator(place, "url"),
        key,
        meter=meter,
        dispatch=spec.dispatch,
        model=spec.model,
        fate=None if spec.serving is None else SwarmFate(spec.serving),
        use_proxy=outside,
        key_now=key_now,
        admits=partial(_admitted, place, spec.workers or 1),
        ca_file=partial(_endpoint_field, place, "ca_file"),
    )


def _admitted(endpoint_file: Path, workers: int) -> int | None:
    """The number of requests that the swarm's endpoint accepts from each of this number of
    workers.
    """
    admits = _endpoint_field(endpoint_file, "admits")
    return None if admits is None else max(1, int(admits) // workers)


def _endpoint_field(endpoint_file: Path, field: str) -> Any:  # noqa: ANN401 - JSON
    """A field of the endpoint's address file; None: the file or the field is missing."""
    try:
        return json.loads(endpoint_file.read_text("utf-8")).get(field)
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _reading_keys(spec: JobSpec) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "Is the swarm up? See `domyn-swarm status`, then submit the same job again."
        if spec.endpoint_file is None:
            hint = "Set OPENAI_API_KEY and submit the same job again."
        raise JobError(
            f"The key of the job's endpoint cannot be read: {error.filename}: {error.strerror}.",
            hint=f"{hint} No row is sent twice.",
        ) from error


def _key_of(spec: JobSpec) -> str | None:
    """The clients' key: from its file, or from the environment in which the platform sets it."""
    if spec.api_key_file is None:
        return None
    try:
        return Path(spec.api_key_file).read_text("utf-8").strip()
    except OSError:
        key = os.environ.get("DOMYN_SWARM_API_TOKEN")
        if key is None:
            raise
        return key


def _locator(path: Path, field: str) -> Callable[[], str]:
    def locate() -> str:
        """The present address of the swarm's endpoint."""
        try:
            return str(json.loads(path.read_text("utf-8"))[field])
        except (OSError, ValueError, KeyError) as error:
            raise JobError(
                f"The swarm's endpoint is not known: {path} cannot be read.",
                hint="Is the swarm up? See `domyn-swarm status`.",
            ) from error

    return locate


_log = get_logger(__name__)

_PATIENCE_S = 15.0  # an endpoint that moves is unreachable for a moment
_ASK_MAX_S = 300.0
_ANEW_S = 60.0  # after this time without a call it has answered meanwhile


class SwarmFate:
    """Called repeatedly while the endpoint does not answer. The platform is queried after a moment,
    then at growing intervals: an endpoint may wait in a queue for days, and many jobs with it.
    """

    def __init__(
        self,
        serving: Mapping[str, Any],
        clock: Clock = time,
        lost: Callable[[ServingHandle], str | None] | None = None,
    ) -> None:
        """`serving` is a `ServingHandle`; `lost` queries its platform, see
        `ServingBackend.lost`.
        """
        self._serving = serving
        self._clock = clock
        self._lost = lost
        self._called_at = -math.inf
        self._next_s = 0.0
        self._pause_s = _PATIENCE_S

    async def __call__(self) -> str | None:
        """Why the endpoint will never answer again; None: it may. Raises nothing."""
        now = self._clock.monotonic()
        if now - self._called_at > _ANEW_S:
            self._pause_s = _PATIENCE_S
            self._next_s = now + _PATIENCE_S
        self._called_at = now
        if now < self._next_s:
            return None
        self._pause_s = min(2 * self._pause_s, _ASK_MAX_S)
        self._next_s = now + self._pause_s * random.uniform(1.0, 1.5)  # noqa: S311
        return await asyncio.to_thread(self._reason)

    def _reason(self) -> str | None:
        from domyn_swarm.backends.endpoint.view import read_ended
        from domyn_swarm.backends.platforms import serving_backend
        from domyn_swarm.backends.protocols import ServingHandle

        try:
            handle = ServingHandle.model_validate(self._serving)
            ended = read_ended(SwarmPaths(Path(handle.swarm_dir)), handle.tag)
            if ended is not None:
                return f"The swarm has ended: {ended.reason}"
            why = (self._lost or serving_backend(handle.platform).lost)(handle)
        except (SwarmError, OSError, ValueError) as error:  # queried again later
            _log.info("the platform does not report the state of the swarm: %s", error)
            return None
        return None if why is None else f"The swarm has failed: {why}"
