"""The one readiness abstraction: a probe is a function that returns an `Observation`.

`wait_until` waits until something is ready; `all_of` composes probes. For a condition that is only
true or false there is `comes_true`, and in an event loop `comes_true_async`.

Other loops that sleep wait for no condition: they do something periodically until they are
cancelled, show progress, retry after a pause, or act on each observation themselves (a program that
supervises its children, a gate that probes at growing intervals). Programs that may not import this
module (`watchdog`, `follower`, `backends.node_report`, engines' servers) have loops of their own.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

_LOADED_S = 60.0  # from the end of loading until the first answer
_LONGEST_ANSWER = 4_000_000  # bytes
_LONGEST_LINE = 65_536


class Phase(IntEnum):
    """How far a start is. A composed probe has the lowest phase of its parts."""

    FAILED = 0  # terminal: it will not become ready
    STOPPED = 1  # terminal: it ended or does not exist
    UNKNOWN = 2  # it could not be probed
    QUEUED = 3  # it waits for the platform
    STARTING = 4
    READY = 5

    @property
    def terminal(self) -> bool:
        """Whether the phase is final, so that waiting longer cannot help."""
        return self in (Phase.FAILED, Phase.STOPPED)


@dataclass(frozen=True)
class Observation:
    """The result of a probe, and its time (seconds of the monotonic clock)."""

    phase: Phase
    detail: str = ""
    loading: bool = field(default=False, kw_only=True)  # an engine loads its model; see `Deadline`
    at: float = field(default_factory=time.monotonic)


Probe = Callable[[], Observation]


class Clock(Protocol):
    """The functions that waiting needs. Tests use a virtual clock."""

    def monotonic(self) -> float:
        """Seconds since a fixed moment."""

    def time(self) -> float:
        """Seconds since the epoch, as in the times of files."""

    def sleep(self, seconds: float, /) -> None:
        """Wait for that time."""


def all_of(**probes: Probe) -> Probe:
    """A probe with the lowest phase of its parts; the detail names the part that is not ready."""

    def probe() -> Observation:
        observations = {name: part() for name, part in probes.items()}
        name, least = min(observations.items(), key=lambda item: item[1].phase)
        detail = f"{name}: {least.detail}" if least.detail else name
        if least.phase is Phase.READY:
            detail = least.detail
        loading = any(part.loading for part in observations.values())
        return Observation(least.phase, detail, loading=loading)

    return probe


def at_least(needed: int, *probes: Probe) -> Probe:
    """A probe that is ready once `needed` of its parts are, and failed once they cannot be."""

    def probe() -> Observation:
        parts = [part() for part in probes]
        ready = sum(part.phase is Phase.READY for part in parts)
        lost = [part for part in parts if part.phase.terminal]
        counted = f"{ready} of {len(parts)} ready"
        if needed != len(parts):
            counted += f", {needed} needed"
        if ready >= needed:
            return Observation(Phase.READY, counted)
        if len(parts) - len(lost) < needed:
            return Observation(Phase.FAILED, f"{counted}; {lost[0].detail}" if lost else counted)
        pending = [part.phase for part in parts if not part.phase.terminal]
        phase = max(phase for phase in pending if phase < Phase.READY)
        return Observation(phase, counted, loading=any(part.loading for part in parts))

    return probe


def http_json(
    url: str,
    *,
    key: str | None = None,
    timeout_s: float = 5.0,
    use_proxy: bool = False,
    ca_file: Path | None = None,
) -> object:
    """GET a small JSON document.

    `use_proxy` uses the proxy of the environment; `ca_file` has certificates that are trusted in
    addition to the system's.

    Raises:
        OSError: no answer, an answer that is not HTTP or is incomplete, or a status other than 200.
        ValueError: the answer is not JSON.
    """
    if url.startswith("http://") and not use_proxy:
        answer = _plain_answer(url, key, timeout_s)
        if answer is not None:
            return json.loads(answer)
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url)
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    proxies = urllib.request.ProxyHandler(None if use_proxy else {})
    handlers: list[urllib.request.BaseHandler] = [proxies]
    if ca_file is not None:
        import ssl

        context = ssl.create_default_context()
        context.load_verify_locations(ca_file)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(request, timeout=timeout_s) as reply:
            return json.loads(reply.read(_LONGEST_ANSWER))
    except urllib.error.HTTPError as error:
        error.close()  # releases the connection
        raise
    except http.client.HTTPException as error:
        raise OSError(f"{url} does not speak HTTP: {error!r}") from error


def _plain_answer(url: str, key: str | None, timeout_s: float) -> bytes | None:
    """The body of the answer to a GET without TLS and proxy; None: use the HTTP library instead.

    Importing that library takes more CPU time than all the rest of `status`.

    Raises:
        OSError: as `http_json`.
    """
    import socket

    host_port, _, path = url.removeprefix("http://").partition("/")
    host, _, port = host_port.rpartition(":")
    if not port.isdecimal() or not host.isascii() or not f"{path}{key}".isprintable():
        return None
    lines = [f"GET /{path} HTTP/1.0", f"Host: {host_port}", "Accept: */*"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    # A host in bytes is not encoded as an international name, for which Python imports a codec.
    place: Any = (host.strip("[]").encode(), int(port))
    with socket.create_connection(place, timeout=timeout_s) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        with connection.makefile("rb") as reply:
            version, _, status = reply.readline(_LONGEST_LINE).decode("latin-1").partition(" ")
            code, _, reason = status.strip().partition(" ")
            if not version.startswith("HTTP/1.") or not code.isdecimal():
                raise OSError(f"{url} does not speak HTTP")
            fields: dict[str, str] = {}
            while line := reply.readline(_LONGEST_LINE).decode("latin-1").strip():
                name, _, value = line.partition(":")
                fields[name.lower()] = value.strip()
            if code.startswith("3") or "transfer-encoding" in fields:
                return None
            if code != "200":
                from email.message import Message
                from urllib.error import HTTPError

                refusal = HTTPError(url, int(code), reason, Message(), io.BytesIO())
                refusal.close()  # Python from 3.14 on warns of one that is left open
                raise refusal
            length = int(fields.get("content-length", _LONGEST_ANSWER))
            body = reply.read(min(length, _LONGEST_ANSWER))
    if "content-length" in fields and len(body) < min(length, _LONGEST_ANSWER):
        raise OSError(f"the answer of {url} is incomplete")
    return body


def endpoint_probe(
    url: str,
    key: str,
    *,
    timeout_s: float = 5.0,
    use_proxy: bool = False,
    ca_file: Path | None = None,
) -> Probe:
    """A probe that is ready once the endpoint at `url` lists at least one model."""

    def probe() -> Observation:
        try:
            listing = http_json(
                f"{url}/v1/models",
                key=key,
                timeout_s=timeout_s,
                use_proxy=use_proxy,
                ca_file=ca_file,
            )
        except (OSError, ValueError) as error:
            return Observation(Phase.STARTING, f"{url} does not answer yet{_cause(error)}")
        if isinstance(listing, dict) and listing.get("data"):
            return Observation(Phase.READY, url)
        return Observation(Phase.STARTING, f"{url} serves no model yet")

    return probe


def _cause(error: OSError | ValueError) -> str:
    """The end of a message about a failed request; empty for a refused connection, which is usual
    before the endpoint has started.
    """
    cause = getattr(error, "reason", error)
    if isinstance(cause, ConnectionRefusedError):
        return ""
    status = getattr(error, "code", None)
    return f": HTTP {status}" if status is not None else f": {cause}"


@dataclass
class Deadline:
    """A time limit that starts when something first runs: time in a queue does not count.

    It does not pass while an engine loads, whose time its watchdog limits. `overall_s` limits the
    whole time, the queue included.
    """

    timeout_s: float
    overall_s: float | None = None
    _began: float | None = None
    _running_since: float | None = None
    _loading_at: float = -math.inf

    def passed(self, observation: Observation, now: float) -> bool:
        """Whether the deadline has passed, given the latest observation."""
        if self._began is None:
            self._began = now
        is_running = observation.phase not in (Phase.QUEUED, Phase.UNKNOWN)
        if self._running_since is None and is_running:
            self._running_since = now
        if self.overall_s is not None and now - self._began >= self.overall_s:
            return True
        if observation.loading:
            self._loading_at = now
        if self._running_since is None or now - self._loading_at < min(_LOADED_S, self.timeout_s):
            return False
        return now - self._running_since >= self.timeout_s


def wait_until(
    probe: Probe,
    *,
    deadline: Deadline,
    every_s: float = 0.5,
    on_change: Callable[[Observation], None] | None = None,
    clock: Clock = time,
) -> Observation:
    """Probe until ready, until a terminal phase, or until the deadline; the last observation.

    `on_change` is called whenever phase or detail change. Only `Phase.READY` is success: after a
    time-out the phase is another one.
    """
    last: tuple[Phase, str] | None = None
    while True:
        observation = probe()
        if on_change is not None and (observation.phase, observation.detail) != last:
            on_change(observation)
        last = (observation.phase, observation.detail)
        if observation.phase is Phase.READY or observation.phase.terminal:
            return observation
        if deadline.passed(observation, clock.monotonic()):
            return observation
        clock.sleep(every_s)


def comes_true(
    condition: Callable[[], bool], *, within_s: float, every_s: float, clock: Clock = time
) -> bool:
    """Wait until a condition holds; whether it did in that time. It is asked once at least."""

    def probe() -> Observation:
        return Observation(Phase.READY if condition() else Phase.STARTING)

    seen = wait_until(probe, deadline=Deadline(within_s), every_s=every_s, clock=clock)
    return seen.phase is Phase.READY


async def comes_true_async(
    condition: Callable[[], bool], *, within_s: float = math.inf, every_s: float
) -> bool:
    """The same in an event loop, by its time."""
    import asyncio  # here: most that import this module have no event loop

    now = asyncio.get_running_loop().time
    until = now() + within_s
    while not condition():
        if now() >= until:
            return False
        await asyncio.sleep(every_s)
    return True
