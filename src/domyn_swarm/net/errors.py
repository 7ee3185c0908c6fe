"""What can go wrong with one request. These become data in the runner and never leave it."""

from __future__ import annotations

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
    kind: type[RequestError] = RequestRefused
    if status >= 500 and _LOST_REPLICA in text:
        lost = ReplicaAway if _NO_REPLICA in text else ReplicaLost
        return lost(message, status=status)
    if status == 429 or (status == 503 and retry_after_s is not None):
        kind = BackPressure
    elif status == 408 or status >= 500:
        kind = ServerFailed
    return kind(message, status=status, retry_after_s=retry_after_s)


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
