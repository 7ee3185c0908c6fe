"""Whether the swarm that a job asks will serve again, as its folder and its platform know it.

A worker loads nothing of the platforms unless nobody answers it.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domyn_swarm.errors import SwarmError
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.probing import Clock

if TYPE_CHECKING:
    from domyn_swarm.backends.base import ServingHandle

_log = get_logger(__name__)

_PATIENCE_S = 15.0  # an endpoint that moves is away for a moment
_ASK_MAX_S = 300.0
_ANEW_S = 60.0  # not called for so long: it answered meanwhile


class SwarmFate:
    """Called again and again while nobody answers. The platform is asked after a moment, then ever
    more seldom: an endpoint may wait in a queue for days, and many jobs with it.
    """

    def __init__(
        self,
        serving: Mapping[str, Any],
        clock: Clock = time,
        lost: Callable[[ServingHandle], str | None] | None = None,
    ) -> None:
        """`serving` is a `ServingHandle`; `lost` asks its platform, see `ServingBackend.lost`."""
        self._serving = serving
        self._clock = clock
        self._lost = lost
        self._called_at = -math.inf
        self._next_s = 0.0
        self._pause_s = _PATIENCE_S

    async def __call__(self) -> str | None:
        """Why nobody will answer again; None: somebody may. Raises nothing."""
        now = self._clock.monotonic()
        if now - self._called_at > _ANEW_S:
            self._pause_s = _PATIENCE_S
            self._next_s = now + _PATIENCE_S
        self._called_at = now
        if now < self._next_s:
            return None
        self._pause_s = min(2 * self._pause_s, _ASK_MAX_S)
        self._next_s = now + self._pause_s * random.uniform(1.0, 1.5)  # noqa: S311
        return await asyncio.to_thread(self._look)

    def _look(self) -> str | None:
        from domyn_swarm.backends.base import ServingHandle
        from domyn_swarm.backends.endpoint.view import read_ended
        from domyn_swarm.backends.platforms import serving_backend

        try:
            handle = ServingHandle.model_validate(self._serving)
            ended = read_ended(SwarmPaths(Path(handle.swarm_dir)), handle.tag)
            if ended is not None:
                return f"The swarm has ended: {ended.reason}"
            why = (self._lost or serving_backend(handle.platform).lost)(handle)
        except (SwarmError, OSError, ValueError) as error:  # asked again later
            _log.info("the platform cannot be asked what became of the swarm: %s", error)
            return None
        return None if why is None else f"The swarm has failed: {why}"
