"""Sends events to a webhook: one POST of JSON, a few attempts within ten seconds at most. Whether
it arrives changes nothing.

The URL is read from a file of mode 0600. It may contain a secret, so no message of ours shows it.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

LONGEST_S = 10.0
_TRIES = 3
_TIMEOUT_S = 3.0
_REST_S = 0.3
_TRIED_AGAIN = frozenset({408, 425, 429})


def notify(url_file: Path, event: str, **facts: Any) -> bool:
    """Send `{"schema_version": 1, "event": …, "at": …, …}`; return whether the server accepted it.
    Nothing is sent if the file does not exist. Never raises.
    """
    try:
        url = url_file.read_text("utf-8").strip()
    except OSError:
        return False
    document = {"schema_version": 1, "event": event, "at": datetime.now(UTC).isoformat(), **facts}
    taken = threading.Event()
    # A server may answer byte by byte for ever: then the thread is left behind.
    thread = threading.Thread(
        target=_send, args=(url, json.dumps(document).encode(), taken), daemon=True
    )
    thread.start()
    thread.join(LONGEST_S)
    if not taken.is_set():
        _log.warning("the webhook did not take the event %s", event)
    return taken.is_set()


def _send(url: str, body: bytes, taken: threading.Event) -> None:
    for attempt in range(_TRIES):
        time.sleep(attempt * _REST_S)
        if not _again(url, body, taken):
            return


def _again(url: str, body: bytes, taken: threading.Event) -> bool:
    """Try once; return whether another attempt may help."""
    try:
        request = urllib.request.Request(  # noqa: S310 - the configuration allows http(s) alone
            url, body, {"Content-Type": "application/json", "User-Agent": "domyn-swarm"}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310 - as above
            taken.set()
            return False
    except urllib.error.HTTPError as refusal:
        with refusal:
            _log.warning("the webhook answered %d", refusal.code)
            return refusal.code >= 500 or refusal.code in _TRIED_AGAIN
    except (OSError, ValueError, http.client.HTTPException) as error:  # may contain the URL
        _log.warning("the webhook did not answer: %s", type(error).__name__)
        return not isinstance(error, ValueError)
