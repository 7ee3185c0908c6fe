"""Opens the file systems behind URLs and turns their refusals into errors of the input."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from domyn_swarm.errors import InvalidInput

HTTP = frozenset({"http", "https"})
"""Protocols without folders."""
_GONE = frozenset({404, 410})
_OURS = ("domyn_swarm", "pyarrow", "pydantic", "pydantic_core", "msgspec", "numpy")


@contextlib.contextmanager
def reaching(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL, and the path in it.

    Raises:
        InvalidInput: the protocol is unknown, a package that it needs is missing (the error names
            it), or the file system could not be reached or refused a request within the context.
            Any other exception within the context passes unchanged.
    """
    system, path = _file_system(url)
    try:
        yield system, path
    except Exception as error:
        if not _of_file_system(error):
            raise
        raise _unreachable(url, error) from error


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InvalidInput(f"{url}: {error}", hint=_installing(url.partition("://")[0])) from error
    except ValueError as error:
        raise InvalidInput(f"{url}: {error}.") from error
    except Exception as error:  # only the library's code runs there
        raise _unreachable(url, error) from error
    return system, str(path)


def _of_file_system(error: Exception) -> bool:
    """Whether an error is a file system's answer to a request: an error of the operating system, or
    an exception of the library (`botocore`, `aiohttp`, `google.auth`, …). Python's other built-in
    exceptions, such as a TypeError, are bugs.
    """
    package = type(error).__module__.partition(".")[0]
    foreign = package not in _OURS and package not in sys.stdlib_module_names
    return isinstance(error, OSError) or foreign


def _unreachable(url: str, error: Exception) -> InvalidInput:
    said = str(error) or repr(error)
    return InvalidInput(
        f"{url} cannot be reached: {said.splitlines()[0]}",
        hint="Check the address and your credentials for it.",
    )


def _installing(protocol: str) -> str:
    from fsspec.registry import known_implementations

    package = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
    if package in {"", "fsspec"}:
        return f"Install what {protocol}:// needs, here and where the job runs."
    return f"pip install {package}, here and where the job runs"


def is_there(system: Any, path: str, protocol: str) -> bool:  # noqa: ANN401 - fsspec's
    """Whether a file exists. Of an HTTP server's answers only "not found" means that it does not.

    Raises:
        Exception: the server refused the request, or cannot be reached.
    """
    if protocol not in HTTP:
        return bool(system.exists(path))
    try:
        system.info(path)
    except FileNotFoundError as error:
        why = error.__cause__
        if why is None or isinstance(why, FileNotFoundError) or getattr(why, "status", 0) in _GONE:
            return False
        raise why from error
    return True
