"""A real receiver of notifications."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Webhook:
    """Takes JSON; `status` is what it answers, and `hangs_s` how long it lets wait for it. `host`
    is where it listens.
    """

    def __init__(self, *, status: int = 200, hangs_s: float = 0.0, host: str = "127.0.0.1") -> None:
        self.taken: list[dict[str, Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.taken.append(json.loads(body))
                hook.gone.wait(hangs_s)
                try:
                    self.send_response(status)
                    self.end_headers()
                except OSError:
                    return

            def log_message(self, *_: object) -> None:
                return

        self.gone = threading.Event()
        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens; the path is a secret."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/hush-hush"

    def of(self, event: str) -> list[dict[str, Any]]:
        """What came of an event."""
        return [one for one in self.taken if one["event"] == event]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.gone.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
