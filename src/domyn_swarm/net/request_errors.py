"""Errors of one request. The runner turns them into data; they never leave it."""

from __future__ import annotations

import re
from typing import Any

from typing_extensions import override

# smg's codes: the connection to a replica broke, or there was none to be had
_LOST_REPLICA = b"call_upstream_"
_NO_REPLICA = b"call_upstream_connection_failed"
_REPLICA_URL = re.compile(rb"https?://[^/\s\"')]+")

# EMFILE and ENFILE as Rust programs print them: no connection could be opened for this request
_OUT_OF_FILES = re.compile(rb"\(os error 2[34]\)")

# OpenAI's code for an account without credit: nothing becomes of waiting
_NO_CREDIT = b"insufficient_quota"

NOT_IMPLEMENTED = 501  # permanent: the server has no such function

# vLLM's message when its engine process has ended behind the API server
_ENGINE_DEAD = re.compile(rb"EngineDead|EngineCore")

# No key, no payment, forbidden, no such model or path: one row may cause these, and every row gets
# them once a key is withdrawn or a model is gone. A redirect leads to a login page.
_DOORS = frozenset({401, 402, 403, 404, 405, 407, 410})

NOT_JSON = (ValueError, RecursionError)
"""Exceptions of decoding a server's bytes: malformed or of other types, text that is not UTF-8 (no
error class of the decoder's), or nested too deeply.
"""


class RequestError(Exception):
    """One request failed. `retryable`: whether a retry may succeed."""

    retryable = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        server: str | None = None,
        barred: bool = False,
    ) -> None:
        """`server`: the replica that failed it, if the router names it; `barred`: it was refused
        for a reason that affects every other request, before its content was read.
        """
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.server = server
        self.barred = barred

    @property
    def may_meet_all(self) -> bool:
        """Whether this is what every request meets when something is wrong with the endpoint."""
        return self.barred


class CannotConnect(RequestError):
    """Nothing listens at the address: nothing was sent."""

    retryable = True


class NoFileLeft(RequestError):
    """The process, or its machine, can open no more files: nothing was sent, and the error says
    nothing about the server.
    """

    retryable = True


class ConnectionBroken(RequestError):
    """The connection ended before the reply did; the request may have been executed."""

    retryable = True


class ReplicaLost(ConnectionBroken):
    """The router lost the replica under the request and says so."""


class ReplicaAway(ReplicaLost):
    """The router could not connect to a replica that it considered alive. It reports the same for
    requests in flight when the replica ended: these are sent once more.
    """


class NobodyThere(ReplicaAway):
    """Nothing listens at a replica's address, to which the request was sent directly: nothing was
    sent.
    """


class RequestTimeout(RequestError):
    """No complete reply in time."""

    retryable = True

    @property
    @override
    def may_meet_all(self) -> bool:
        return True


class RequestRefused(RequestError):
    """A 4xx that the request itself caused, or 501: the same request gets the same answer."""


class BackPressure(RequestError):
    """429, or 503 with `Retry-After`: the server is busy, the request is fine."""

    retryable = True


class ServerFailed(RequestError):
    """408 or 5xx, but 501."""

    retryable = True


class EngineDead(ServerFailed):
    """The server answers, and reports that the engine behind it ended during the request."""


class BadReply(RequestError):
    """A 200 whose body is not what the API promises."""

    retryable = True


class DeadlyRow(RequestError):
    """Engines repeatedly ended while they answered this row, finally this row alone."""


def no_file_left() -> NoFileLeft:
    """The error of a request for which no connection could be opened here."""
    return NoFileLeft("no connection can be opened: too many open files (see ulimit -n)")


def no_reply_in_time(limit_s: float) -> RequestTimeout:
    """The error of a request that got no complete reply within its limit."""
    return RequestTimeout(f"no reply within {limit_s:g} s, the limit of --timeout or of the call")


def error_from_status(
    status: int,
    body: bytes | memoryview,
    retry_after_s: float | None,
    server: str | None = None,
) -> RequestError:
    """The error that a reply with this status (300 and above) stands for."""
    text = bytes(body[:4096])
    message = f"HTTP {status}: {_message_of(text)}"
    if status >= 500 and _OUT_OF_FILES.search(text):  # the router's; its replicas are well
        return BackPressure(message, status=status, retry_after_s=retry_after_s)
    if status >= 500 and _LOST_REPLICA in text:
        lost = ReplicaAway if _NO_REPLICA in text else ReplicaLost
        named = _REPLICA_URL.search(text)
        return lost(message, status=status, server=named[0].decode() if named else server)
    barred = status < 400 or status in _DOORS or (status == 429 and _NO_CREDIT in text)
    kind = RequestRefused if barred else _kind_of(status, retry_after_s)
    if kind is ServerFailed and _ENGINE_DEAD.search(text):
        kind = EngineDead
    return kind(message, status=status, retry_after_s=retry_after_s, server=server, barred=barred)


def page_instead(body: bytes | memoryview, server: str | None) -> RequestError | None:
    """The error of a 200 that is a web page: a login or a proxy's notice; None: it is none."""
    text = bytes(body[:4096]).lstrip()
    if not text.startswith(b"<"):
        return None
    words = " ".join(re.sub(r"<[^>]*>", " ", text.decode("utf-8", "replace")).split())[:160]
    return BadReply(
        f"a web page came instead of an answer: {words}", status=200, server=server, barred=True
    )


# HTTP statuses of error types that servers report without a number.
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


def error_in_reply(what: str, given: Any) -> RequestError:  # noqa: ANN401 - JSON
    """The error that stands in a reply of status 200: what its code says it is, in its words.

    Without a code that is known it is the server's, and asking again may help.
    """
    fields = given if isinstance(given, dict) else {"message": given}
    names = [fields.get(name) for name in ("code", "status", "type")]
    status = next(filter(None, map(_status_of, names)), None)
    words = fields.get("message") or (given if given else "")
    message = f"{what}: {words}"[:600] if words else what
    if status is not None:
        message += f" (code {status})"
    kind = _kind_of(status or 500, None)
    return kind(message, status=status, barred=status in _DOORS)


def _status_of(name: Any) -> int | None:  # noqa: ANN401 - JSON
    """The HTTP status that a code or type of an error corresponds to, if any."""
    text = str(name).lower()
    if text.isdecimal():
        return int(text) if 400 <= int(text) <= 599 else None
    return next((status for word, status in _STATUS_OF_WORD.items() if word in text), None)


def _kind_of(status: int, retry_after_s: float | None) -> type[RequestError]:
    if status == 429 or (status == 503 and retry_after_s is not None):
        return BackPressure
    failed = status == 408 or (status >= 500 and status != NOT_IMPLEMENTED)
    return ServerFailed if failed else RequestRefused


def _message_of(body: bytes) -> str:
    """The human part of an error body: OpenAI's `error.message` where it is found."""
    import msgspec

    try:
        decoded = msgspec.json.decode(body)
    except NOT_JSON:
        return body.decode("utf-8", "replace").strip()[:500] or "(empty body)"
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else decoded
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)[:500]
