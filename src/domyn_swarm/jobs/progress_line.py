"""How far a run is, on one line of stderr."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

from domyn_swarm.batch.tally import Tally
from domyn_swarm.model import ReplyVerdict

_DRAW_S = 0.5
_LINE_S = 10.0  # where a line cannot be drawn over, so often


class ProgressLine:
    """Redrawn in a terminal or a notebook; elsewhere a line now and then. Not shown: silent."""

    def __init__(self, tally: Tally, name: str, *, shown: bool) -> None:
        self._tally = tally
        self._name = name
        self._shown = shown
        self._redraws = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._drawn = 0  # characters of the line that stands there
        self._told_at = time.monotonic()

    async def keep_drawing(self) -> None:
        """Draw until cancelled."""
        while self._shown:
            await asyncio.sleep(_DRAW_S)
            if self._redraws:
                self._draw()
            elif time.monotonic() - self._told_at >= _LINE_S:
                self._told_at = time.monotonic()
                self._say(self._text())
        await asyncio.Event().wait()

    def notice(self, text: str) -> None:
        """Say something that is not progress."""
        if self._shown:
            self._clear()
            self._say(text)

    def end(self) -> None:
        """The last word."""
        if self._shown:
            self._clear()
            self._say(self._text())

    def _draw(self) -> None:
        text = self._text()
        _print("\r" + text.ljust(self._drawn))
        self._drawn = len(text)

    def _clear(self) -> None:
        if self._drawn:
            _print("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _say(self, text: str) -> None:
        _print(text + "\n")

    def _text(self) -> str:
        tally = self._tally
        parts = [f"{self._name}: {tally.rows_done}/{tally.rows_total or 0} rows"]
        if tally.rows_resumed:
            parts[0] += f" ({tally.rows_done - tally.rows_resumed} asked now, "
            parts[0] += f"{tally.rows_resumed} before)"
        if tally.all_failed:
            parts.append(f"{tally.all_failed} failed")
        noted = {*tally.all_verdicts} - {ReplyVerdict.COMPLETE, ReplyVerdict.ERROR}
        parts += [f"{tally.all_verdicts[one]} {one.value}" for one in sorted(noted)]
        rate, left_s = tally.rows_per_s(), tally.eta_s()
        if rate:
            parts.append(f"{rate:.1f} rows/s")
        if left_s:
            parts.append(f"{left_s:.0f} s left")
        if told := tally.paused or tally.remark:
            parts.append(told)
        return ", ".join(parts)


def _print(text: str) -> None:
    """To stderr. A terminal that is gone, or a log on a full disk, is no reason to end a run."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
