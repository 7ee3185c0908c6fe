"""What can go wrong with one request. These become data in the runner and never leave it."""

from __future__ import annotations

from typing import Any

# smg's codes: the connection to a replica broke, or there was none to be had
_LOST_REPLICA = b"call_upstream_"
_NO_REPLICA = b"call_upstream_connection_failed"


class RequestError(Exception):
    """One request failed. `retryable` says whether asking again may help."""

    retryable = False

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s


class CannotConnect(RequestError):
    """Nobody listens: nothing was sent."""

    retryable = True


class ConnectionBroken(RequestError):
    """The connection ended before the reply did; the request may have been executed."""

    retryable = True


class ReplicaLost(ConnectionBroken):
    """The router lost the replica under the request and says so."""


class ReplicaAway(ReplicaLost):
    """The router could not connect to a replica that it still believed in: nothing was executed."""


class RequestTimeout(RequestError):
    """No complete reply in time."""

    retryable = True


class RequestRefused(RequestError):
    """A 4xx that the request itself caused: the same request gets the same answer."""


class BackPressure(RequestError):
    """429, or 503 with `Retry-After`: the server is busy, the request is fine."""

    retryable = True


class ServerFailed(RequestError):
    """408 or 5xx."""

    retryable = True


class BadReply(RequestError):
    """A 200 whose body is not what the API promises."""

    retryable = True


def error_from_status(
    status: int, body: bytes | memoryview, retry_after_s: float | None
) -> RequestError:
    """The error that a reply with this status (400 and above) stands for."""
    text = bytes(body[:4096])
    message = f"HTTP {status}: {_message_of(text)}"
    if status >= 500 and _LOST_REPLICA in text:
        lost = ReplicaAway if _NO_REPLICA in text else ReplicaLost
        return lost(message, status=status)
    kind = _kind_of(status, retry_after_s)
    return kind(message, status=status, retry_after_s=retry_after_s)


# What servers call errors that have no number, by what it would be.
_STATUS_OF_WORD = {
    "rate_limit": 429,
    "too_many_requests": 429,
    "resource_exhausted": 429,
    "invalid_request": 400,
    "bad_request": 400,
    "badrequest": 400,
    "invalid_argument": 400,
    "context_length": 400,
    "content_filter": 400,
    "authentication": 401,
    "unauthorized": 401,
    "permission": 403,
    "not_found": 404,
    "notfound": 404,
}


def error_in_reply(what: str, told: Any) -> RequestError:  # noqa: ANN401 - JSON
    """The error that stands in a reply of status 200: what its code says it is, in its words.

    Without a code that is known it is the server's, and asking again may help.
    """
    fields = told if isinstance(told, dict) else {"message": told}
    names = [fields.get(name) for name in ("code", "status", "type")]
    status = next(filter(None, map(_status_of, names)), None)
    words = fields.get("message") or (told if told else "")
    message = f"{what}: {words}"[:600] if words else what
    if status is not None:
        message += f" (code {status})"
    return _kind_of(status or 500, None)(message, status=status)


def _status_of(name: Any) -> int | None:  # noqa: ANN401 - JSON
    """The HTTP status that a code or type of an error stands for, if it stands for one."""
    text = str(name).lower()
    if text.isdecimal():
        return int(text) if 400 <= int(text) <= 599 else None
    return next((status for word, status in _STATUS_OF_WORD.items() if word in text), None)


def _kind_of(status: int, retry_after_s: float | None) -> type[RequestError]:
    if status == 429 or (status == 503 and retry_after_s is not None):
        return BackPressure
    return ServerFailed if status == 408 or status >= 500 else RequestRefused


def _message_of(body: bytes) -> str:
    """The human part of an error body: OpenAI's `error.message` where it is found."""
    import msgspec

    try:
        decoded = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace").strip()[:500] or "(empty body)"
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else decoded
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)[:500]
