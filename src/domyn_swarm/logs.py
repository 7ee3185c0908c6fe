"""One logging configuration for every program: to stderr or a file, never to stdout."""

from __future__ import annotations

import logging
import os
import sys

_ROOT = "domyn_swarm"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; `name` is its `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def configure(level: str | None = None) -> None:
    """Send our loggers to stderr, once; calling again only changes the level.

    `level` wins over `DOMYN_SWARM_LOG_LEVEL`; the default is WARNING.
    """
    logger = logging.getLogger(_ROOT)
    chosen = (level or os.environ.get("DOMYN_SWARM_LOG_LEVEL") or "WARNING").upper()
    if chosen not in logging.getLevelNamesMapping():
        chosen = "WARNING"
    logger.setLevel(chosen)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)
        logger.propagate = False
