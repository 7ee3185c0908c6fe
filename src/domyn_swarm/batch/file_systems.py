"""File systems behind URLs: fsspec's, and the errors that users see of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from domyn_swarm.errors import InvalidInput, SwarmError


@contextlib.contextmanager
def reaching(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL, and the path in it.

    Raises:
        InvalidInput: there is no such protocol, a package that it needs is missing (it is named),
            or the file system raised something within the context.
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        yield fsspec.core.url_to_fs(url)
    except SwarmError:
        raise
    except ImportError as error:
        raise InvalidInput(f"{url}: {error}", hint=_installing(protocol)) from error
    except ValueError as error:
        raise InvalidInput(f"{url}: {error}.") from error
    except Exception as error:  # file systems raise errors of libraries of their own
        raise InvalidInput(
            f"{url} cannot be reached: {str(error).splitlines()[0] if str(error) else error!r}",
            hint="Check the address and your credentials for it.",
        ) from error


def _installing(protocol: str) -> str:
    from fsspec.registry import known_implementations

    package = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
    if package in {"", "fsspec"}:
        return f"Install what {protocol}:// needs, here and where the job runs."
    return f"pip install {package}, here and where the job runs"
