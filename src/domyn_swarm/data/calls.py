"""Calls of a library's own readers and writers, with options that users chose."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from domyn_swarm.errors import InvalidInput, SwarmError


def check_options(function: Callable[..., Any], options: Mapping[str, Any], flag: str) -> None:
    """Refuse options that a function has no name for.

    Raises:
        InvalidInput: names them and the function.
    """
    known = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InvalidInput(
            f"{flag}: {function.__module__}.{function.__name__} takes no "
            f"{', '.join(map(repr, unknown))}.",
            hint=f"It takes {', '.join(known)}.",
        )


@contextlib.contextmanager
def failures_named(doing: str, files: Sequence[str], flag: str) -> Iterator[None]:
    """What a library raises, as one error that names the files.

    Raises:
        InvalidInput: the library raised.
    """
    try:
        yield
    except SwarmError:
        raise
    except Exception as error:  # the border to a library and its user's options
        where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        raise InvalidInput(
            f"{doing} {where}: {_told(error)}",
            hint=f"Check the file and {flag}.",
        ) from error


def _told(error: BaseException) -> str:
    """The line of an error that says why: of what it began with, and not of who passed it on."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
