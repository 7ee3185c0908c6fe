"""A headless Chromium that tests open pages in, ask, and photograph: by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from patience import limit_s, until_async

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason="Chromium is not installed: `make monitoring-packages` where there is apt",
)
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
_ANSWER_BYTES = 64_000_000


def browse(*flags: str, page: str | Path, profile: Path) -> str:
    """What headless Chromium says of a page that is a file; the flags are what it is asked."""
    done = subprocess.run(
        ["chromium", *_FLAGS, f"--user-data-dir={profile}", *flags, f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Tab:
    """A page, as one who looks at it sees it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []  # of the console: what a policy forbade, errors of scripts

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol, and its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(limit_s()):
            while True:
                said = await self._socket.receive_json()
                if said.get("id") == self._number:
                    assert "error" not in said, said
                    return said["result"]
                self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        if said.get("method") == "Log.entryAdded":
            self.complaints.append(said["params"]["entry"]["text"])
        elif said.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(said["params"]["exceptionDetails"]))

    async def open(self, url: str) -> None:
        """Go there."""
        await self.call("Page.navigate", url=url)

    async def asks(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        done = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until an expression is true; an error counts as not yet."""

        async with asyncio.timeout(limit_s()):
            while True:
                with contextlib.suppress(AssertionError):
                    if value := await self.asks(script):
                        return value
                await asyncio.sleep(0.05)

    async def text(self) -> str:
        """What is to be read on it."""
        return str(await self.asks("document.body.innerText"))

    async def picture(self) -> bytes:
        """What fits into the window, as PNG."""
        shot = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])


@contextlib.asynccontextmanager
async def browser(profile: Path, *flags: str) -> AsyncIterator[Tab]:
    """A browser of its own with one empty page."""
    process = await asyncio.create_subprocess_exec(
        *("chromium", *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", *flags),
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        ports = profile / "DevToolsActivePort"
        await until_async(lambda: ports.exists() and "\n" in ports.read_text("utf-8"))
        port = ports.read_text("utf-8").splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                [page] = [one for one in await reply.json() if one["type"] == "page"]
            async with session.ws_connect(
                page["webSocketDebuggerUrl"], max_msg_size=_ANSWER_BYTES
            ) as socket:
                tab = Tab(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await tab.call(f"{domain}.enable")
                yield tab
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
