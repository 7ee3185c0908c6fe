"""The logging configuration of every program: to stderr or a file, never to stdout.

Lines are text, or with `DOMYN_SWARM_LOG_FORMAT=json` JSON objects with `at`, `level`, `logger`,
`message`, and `error` for a traceback.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from domyn_swarm.errors import ConfigError

LEVEL_VARIABLE = "DOMYN_SWARM_LOG_LEVEL"
FORMAT_VARIABLE = "DOMYN_SWARM_LOG_FORMAT"
FORMATS = ("text", "json")

_ROOT = "domyn_swarm"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _JsonLines(logging.Formatter):
    """Each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line without a line break."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg] # not generic when it runs
    """Our handler. Its class identifies it, so that it is added only once."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; `name` is its `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def configure(default_level: str = "WARNING", environ: Mapping[str, str] = os.environ) -> None:
    """Log to stderr. A second call only changes level and format.

    `DOMYN_SWARM_LOG_LEVEL` overrides the program's default, and `DOMYN_SWARM_LOG_FORMAT` selects
    the format. If a program has added its own handler to our loggers, none is added.

    Raises:
        ConfigError: one of the variables has an invalid value.
    """
    level = _chosen(environ, LEVEL_VARIABLE, default_level, _LEVELS, str.upper)
    form = _chosen(environ, FORMAT_VARIABLE, "text", FORMATS, str.lower)
    logger = logging.getLogger(_ROOT)
    logger.setLevel(level)
    if not logger.handlers:
        logger.addHandler(_Stderr())
        logger.propagate = False
    for handler in logger.handlers:
        if isinstance(handler, _Stderr):
            handler.setFormatter(_JsonLines() if form == "json" else logging.Formatter(_TEXT))


def variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The logging variables that are set, for programs on nodes that may not inherit them."""
    return {name: environ[name] for name in (LEVEL_VARIABLE, FORMAT_VARIABLE) if environ.get(name)}


def _chosen(
    environ: Mapping[str, str],
    variable: str,
    default: str,
    allowed: tuple[str, ...],
    spelled: Callable[[str], str],
) -> str:
    value = spelled(environ.get(variable) or default)
    if value not in allowed:
        raise ConfigError(
            f"{variable} is {environ[variable]!r}, which is not one of {', '.join(allowed)}.",
            hint=f"Set it to one of these values, or unset {variable}.",
        )
    return value
