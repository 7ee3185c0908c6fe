"""The report of a job as one self-contained HTML file. Only this module uses Jinja for pages.

Everything is escaped: rows, errors and names are text that we do not control.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from domyn_swarm import __version__
from domyn_swarm.backends.gpu_time import Span
from domyn_swarm.batch.durable_files import written_whole
from domyn_swarm.errors import JobError
from domyn_swarm.paths import write_private
from domyn_swarm.services.charts import (
    Chart,
    Moment,
    Series,
    Steps,
    duration,
    histogram,
    in_rows,
    number,
    over_time,
)
from domyn_swarm.services.report_records import EventReport, JobReport
from domyn_swarm.services.reports import GatheredReport
from domyn_swarm.services.time_series import JobTimeSeries

_TEMPLATES = Path(__file__).parent / "templates"
_EVENTS_SHOWN = 200
_BANDS_SHOWN = 64  # replicas
_BAD = ("failed", "unhealthy", "restarting", "exited")


def render(gathered: GatheredReport) -> str:
    """The page as HTML."""
    report = gathered.report
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            job=report.job,
            account=report.account,
            version=__version__,
            course_charts=course_charts(gathered),
            replica_bands=replica_bands(gathered),
            latency_chart=_latency_chart(report),
            sizes_chart=_sizes_chart(report),
            events=report.events[-_EVENTS_SHOWN:],
            events_left_out=max(0, len(report.events) - _EVENTS_SHOWN),
            killed=_killed(report),
        )
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, duration=duration, moment=_moment)
    return environment


def drawn(chart: Chart) -> str:
    """One plot as HTML for a page with `stylesheet`. Everything in it is escaped."""
    template = _environment().get_template("plot.html.j2")
    return str(template.make_module().plot(chart))  # type: ignore[attr-defined]


def stylesheet() -> str:
    """The CSS of the report and its plots, with a light and a dark theme."""
    return (_TEMPLATES / "page.css").read_text("utf-8")


def _moment(at: datetime | None) -> str:
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _killed(report: JobReport) -> list[bool]:
    """For each run, whether it was killed. The last run of a live job has not ended."""
    live = not report.job.status.final
    last = len(report.runs) - 1
    return [not run.ended and not (live and at == last) for at, run in enumerate(report.runs)]


def course_charts(gathered: GatheredReport) -> list[Chart]:
    """Plots of throughput, concurrency and tokens over time; those without data are left out."""
    report, time_series = gathered.report, gathered.time_series
    moments = [*_begins(report, time_series), *_replica_moments(report.events, time_series)]
    whole_s = time_series.whole_s

    def series(name: str, kind: str, field: str) -> Series:
        steps: Steps = [
            (stretch.from_s, stretch.to_s, getattr(stretch, field))
            for run in time_series.stretches
            for stretch in run
        ]
        return Series(name, kind, steps)

    charts = [
        over_time("Throughput", "rows/s", whole_s, [series("rows/s", "a", "rows_per_s")], moments),
        over_time(
            "Concurrency",
            "requests",
            whole_s,
            _known(
                series("limit", "muted", "limit"),
                series("in flight", "a", "in_flight"),
                series("running in all engines", "b", "running"),
                series("waiting in all engines", "c", "waiting"),
            ),
            moments,
        ),
        over_time(
            "Tokens", "tokens/s", whole_s, [series("tokens/s", "b", "tokens_per_s")], moments
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _known(*series: Series) -> list[Series]:
    return [line for line in series if any(value is not None for *_, value in line.steps)]


def _begins(report: JobReport, time_series: JobTimeSeries) -> list[Moment]:
    """A moment for the start of each run but the first, with how the run before it ended."""
    killed = _killed(report)
    moments = []
    for at, (begin_s, run) in enumerate(zip(time_series.begins_s, report.runs, strict=True)):
        if not at:
            continue
        before = report.runs[at - 1]
        title = f"run {at + 1} begins"
        if run.began_at is not None and before.began_at is not None:
            gap = run.began_at - before.began_at - timedelta(seconds=before.wall_s)
            title += f", {duration(max(0.0, gap.total_seconds()))} after the last"
        label = f"{'killed, ' if killed[at - 1] else ''}run {at + 1}"
        moments.append(Moment(begin_s, label, title, "bad" if killed[at - 1] else "run"))
    return moments


def _replica_moments(events: Sequence[EventReport], time_series: JobTimeSeries) -> list[Moment]:
    moments = []
    for event in events:
        place = time_series.place_of(event.at)
        if place is not None and (event.state in _BAD or event.state == "ready"):
            bad = event.state in _BAD
            title = f"replica {event.replica} {event.state}: {event.reason or ''}"
            label = f"replica {event.replica} {event.state}"
            moments.append(Moment(place, label, title, "bad" if bad else "good"))
    return moments


def replica_bands(gathered: GatheredReport) -> Chart | None:
    """The use of each replica's time from the job's start to its end, with the time between its
    runs.
    """
    spans = gathered.replica_spans
    times = [(span.begin, span.end) for each in spans.values() for span in each]
    if not times:
        return None
    began, ended = min(begin for begin, _ in times), max(end for _, end in times)
    rows = []
    for replica, each in list(spans.items())[:_BANDS_SHOWN]:
        stretches = [
            (span.begin - began, span.end - began, span.use.value, _tooltip(span)) for span in each
        ]
        rows.append((str(replica), stretches))
    unit = f"since {datetime.fromtimestamp(began, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if len(spans) > _BANDS_SHOWN:
        unit += f"; the first {_BANDS_SHOWN} of {len(spans)}"
    return in_rows("What replicas did", unit, ended - began, rows, list(_USE_NAMES.items()))


_USE_NAMES = {
    "queued": "queued",
    "starting": "starting",
    "working": "working",
    "repeated": "on what is repeated",
    "idle_rows_waiting": "idle, rows wait",
    "idle_without_work": "idle",
    "draining": "draining",
    "dead": "dead",
    "unknown": "unknown",
}


def _tooltip(span: Span) -> str:
    cause = f" ({span.cause})" if span.cause else ""
    return f"{_USE_NAMES[span.use.value]}{cause}, {duration(span.seconds)}"


def _latency_chart(report: JobReport) -> Chart | None:
    latency = report.latency_s
    if latency is None:
        return None
    pairs = zip(latency.bounds, latency.counts, strict=False)
    bins = [(duration(bound), count) for bound, count in pairs]
    return histogram("Latency of requests", "requests", bins)


def _sizes_chart(report: JobReport) -> Chart | None:
    sizes = report.completion_sizes
    if sizes is None:
        return None
    pairs = zip(sizes.bounds, sizes.counts, strict=False)
    bins: list[tuple[str, Any]] = [(number(bound), count) for bound, count in pairs]
    first = next((at for at, (_, count) in enumerate(bins) if count), 0)
    return histogram("Tokens of a reply", "replies", bins[first:])


def write_page(gathered: GatheredReport, *, private: bool) -> None:
    """Write the page atomically.

    Args:
        gathered: the content.
        private: mode 0600; otherwise the mode follows the user's umask.

    Raises:
        JobError: the file cannot be written.
    """
    path, page = gathered.report.path, render(gathered)
    try:
        if private:
            write_private(path, page)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise JobError(
            f"Cannot write {path}: {error.strerror or error}.", hint="Choose another --output."
        ) from error
