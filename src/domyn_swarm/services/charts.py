"""Geometry of plots: converts figures to SVG coordinates. Templates draw and colour them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 860.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 30.0, 38.0, 30.0
_TICKS = 5
_LABEL_WIDTH = 125.0  # labels closer than this would overlap
_LABEL_ROWS = 2
_MIN_BAND = 0.4  # width
_MAX_BAR = 60.0  # width


@dataclass(frozen=True)
class Tick:
    """A line of the grid."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One series: its name, its CSS class, and the `d` of its path."""

    name: str
    kind: str
    path: str


@dataclass(frozen=True)
class Bar:
    """One bar, and its tooltip."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Mark:
    """A vertical line at a moment. `label` is empty if there is no space for it."""

    x: float
    label_y: float
    label: str
    title: str
    kind: str


@dataclass(frozen=True)
class Band:
    """A segment of a row, and its tooltip."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


@dataclass(frozen=True)
class Chart:
    """One plot, ready to be drawn."""

    title: str
    unit: str
    xs: tuple[Tick, ...]
    ys: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    marks: tuple[Mark, ...] = ()
    bands: tuple[Band, ...] = ()
    kinds: tuple[tuple[str, str], ...] = ()  # legend of the bands: CSS class and name
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


Scale = Callable[[float], float]
Steps = Sequence[tuple[float, float, float | None]]
"""Start, end, and the value between them; None: unknown."""


@dataclass(frozen=True)
class Series:
    """The data of one line."""

    name: str
    kind: str
    steps: Steps


@dataclass(frozen=True)
class Moment:
    """An event at a position on the x axis."""

    at: float
    label: str
    title: str
    kind: str


def over_time(
    title: str,
    unit: str,
    whole_s: float,
    series: Sequence[Series],
    moments: Iterable[Moment] = (),
    *,
    whole: bool = False,
) -> Chart | None:
    """A plot of steps over seconds; None without data. `whole`: values are whole numbers."""
    values = [value for line in series for *_, value in line.steps if value is not None]
    if not values or whole_s <= 0:
        return None
    highest = max(*values, 1e-9)
    ticks = _ticks(highest, whole=whole)
    top = max(highest, ticks[-1])

    def x(seconds: float) -> float:
        return _LEFT + (WIDTH - _RIGHT - _LEFT) * min(1.0, max(0.0, seconds / whole_s))

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * value / top

    return Chart(
        title=title,
        unit=unit,
        xs=tuple(Tick(x(at), duration(at)) for at in _times(whole_s)),
        ys=tuple(Tick(y(at), number(at)) for at in ticks),
        lines=tuple(Line(line.name, line.kind, _path(line.steps, x, y)) for line in series),
        marks=_marks(moments, x),
    )


Stretches = Sequence[tuple[float, float, str, str]]
"""Start, end, kind, and tooltip."""
_ROW, _ROW_GAP = 14.0, 4.0


def in_rows(
    title: str,
    unit: str,
    whole_s: float,
    rows: Sequence[tuple[str, Stretches]],
    kinds: Sequence[tuple[str, str]],
) -> Chart | None:
    """A plot with a row of bands for each name over seconds; None without data.

    Short stretches are drawn with a minimum width, unless the band before covers them.
    """
    if whole_s <= 0 or not any(stretches for _, stretches in rows):
        return None
    scale = (WIDTH - _RIGHT - _LEFT) / whole_s
    bands, names = [], []
    for at, (name, stretches) in enumerate(rows):
        y = _TOP + at * (_ROW + _ROW_GAP)
        names.append(Tick(y + _ROW / 2, name))
        drawn_to = 0.0
        for begin, end, kind, title_of_band in stretches:
            x = _LEFT + scale * max(0.0, begin)
            right = _LEFT + scale * min(whole_s, end)
            if right - drawn_to < _MIN_BAND:  # it would not be visible beside the band before
                continue
            bands.append(Band(x, y, max(_MIN_BAND, right - x), _ROW, kind, title_of_band))
            drawn_to = right
    bottom = _TOP + len(rows) * (_ROW + _ROW_GAP)
    used = {band.kind for band in bands}
    return Chart(
        title=title,
        unit=unit,
        xs=tuple(Tick(_LEFT + scale * at, duration(at)) for at in _times(whole_s)),
        ys=tuple(names),
        bands=tuple(bands),
        kinds=tuple((kind, name) for kind, name in kinds if kind in used),
        height=bottom + _BOTTOM,
        bottom=bottom,
    )


def histogram(title: str, unit: str, bins: Sequence[tuple[str, int]]) -> Chart | None:
    """Bars for the counts of adjacent bins, labelled with upper bounds; None: all are empty."""
    if not any(count for _, count in bins):
        return None
    highest = max(count for _, count in bins)
    ticks = _ticks(highest, whole=True)
    top = max(float(highest), ticks[-1])
    room = min((WIDTH - _RIGHT - _LEFT) / len(bins), _MAX_BAR)
    floor = HEIGHT - _BOTTOM
    whole = sum(count for _, count in bins)
    bars, labels = [], []
    every = max(1, math.ceil(len(bins) / 10))
    for at, (label, count) in enumerate(bins):
        high = (floor - _TOP) * count / top
        share = f"{count:,} ({count / whole:.1%}) up to {label}"
        bars.append(Bar(_LEFT + at * room + 1, floor - high, max(1.0, room - 2), high, share))
        if at % every == every - 1 or len(bins) <= every:
            labels.append(Tick(_LEFT + (at + 1) * room, label))
    ys = tuple(Tick(floor - (floor - _TOP) * at / top, number(at)) for at in ticks)
    return Chart(title=title, unit=unit, xs=tuple(labels), ys=ys, bars=tuple(bars))


def _path(steps: Steps, x: Scale, y: Scale) -> str:
    words, drawing = [], False
    for begin, end, value in steps:
        if value is None:
            drawing = False
            continue
        high = y(value)
        words.append(f"{'L' if drawing else 'M'}{x(begin):.1f} {high:.1f}")
        words.append(f"L{x(end):.1f} {high:.1f}")
        drawing = True
    return " ".join(words)


def _marks(moments: Iterable[Moment], x: Scale) -> tuple[Mark, ...]:
    """Vertical lines; labels that would overlap are stacked, or left out if all rows are full."""
    marks: list[Mark] = []
    rows: list[list[float]] = [[] for _ in range(_LABEL_ROWS)]
    for moment in moments:
        at = x(moment.at)
        free = (row for row in rows if all(abs(at - other) >= _LABEL_WIDTH for other in row))
        row = next(free, None)
        label_y = _TOP - 10 - 13 * (0 if row is None else rows.index(row))
        label = "" if row is None else moment.label
        marks.append(Mark(at, label_y, label, moment.title, moment.kind))
        if row is not None:
            row.append(at)
    return tuple(marks)


def _ticks(top: float, *, whole: bool = False) -> list[float]:
    """Round numbers from 0 to about `top`."""
    rough = max(top, 1e-9) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(1.0, step) if whole else step
    return [step * at for at in range(int(top / step + 0.001) + 1)] + (
        [] if abs(top / step - round(top / step)) < 0.001 else [step * (int(top / step) + 1)]
    )


_STEPS_S = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)


def _times(whole_s: float) -> list[float]:
    step = next(
        (step_s for step_s in _STEPS_S if whole_s / step_s <= 10),
        86400 * math.ceil(whole_s / 864e3),
    )
    return [step * at for at in range(int(whole_s / step) + 1)]


def duration(seconds: float) -> str:
    """A duration for people: `90 s`, `12 min`, `3 h 20 min`."""
    if seconds < 0.1 and seconds:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours / 24:.3g} days"


def number(value: float) -> str:
    """A number for people: `12,000`, `1.5 M`, `0.03`."""
    for size, unit in ((1e9, " G"), (1e6, " M")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
