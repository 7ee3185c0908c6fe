"""Families of metrics as the Prometheus library has them, made of what is known at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from domyn_swarm.backends.endpoint.use_meter import FollowedJob
from domyn_swarm.model import Histogram, JobProgress, ReplyVerdict

Labelled = Iterable[tuple[Sequence[str], float | None]]
"""Values by the values of their labels; None: not known, so not told."""
_OURS = "domyn_swarm_"


def gauge(name: str, about: str, labels: Sequence[str], values: Labelled) -> Metric:
    """Values that go up and down; `name` without our prefix."""
    family = GaugeMetricFamily(_OURS + name, about, labels=labels)
    for words, value in values:
        if value is not None:
            family.add_metric(words, float(value))
    return family


def counter(name: str, about: str, labels: Sequence[str], values: Labelled) -> Metric:
    """Values that only grow; `name` without our prefix and without `_total`."""
    family = CounterMetricFamily(_OURS + name, about, labels=labels)
    for words, value in values:
        if value is not None:
            family.add_metric(words, float(value))
    return family


def histogram(
    name: str,
    about: str,
    labels: Sequence[str],
    values: Iterable[tuple[Sequence[str], Histogram | None]],
) -> Metric:
    """Histograms under a name of OpenTelemetry's."""
    family = HistogramMetricFamily(name, about, labels=labels)
    for words, value in values:
        if value is not None:
            family.add_metric(words, _cumulative(value), value.total)
    return family


def _cumulative(found: Histogram) -> list[tuple[str, float]]:
    """As the text format wants it: each bucket holds what those below it do."""
    buckets, so_far = [], 0
    for bound, count in zip((*found.bounds, None), found.counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound is None else f"{bound:.12g}", float(so_far)))
    return buckets


_LABELS = ("swarm", "job_id", "job_name")
_NAME_LENGTH = 80
_Known = Sequence[tuple[tuple[str, str, str], JobProgress]]


def job_families(swarm: str, jobs: Sequence[FollowedJob]) -> Iterator[Metric]:
    """The families of all jobs that said something lately."""
    known = [((swarm, job.job_id, job.progress.name[:_NAME_LENGTH]), job.progress) for job in jobs]
    yield from _states(known)
    yield from _counts(known)
    yield from _histograms(known)


def _states(known: _Known) -> Iterator[Metric]:
    for name, about, values in (
        ("rows", "Rows that the job is about.", [one.rows_total for _, one in known]),
        (
            "active",
            "1 until the job says that it has ended.",
            [one.state != "ended" for _, one in known],
        ),
        (
            "paused",
            "1 while the job waits for an endpoint that is gone.",
            [one.state == "paused" for _, one in known],
        ),
        ("rows_in_flight", "Rows that are being asked.", [one.in_flight for _, one in known]),
        (
            "concurrency_limit",
            "Calls that the job may have in flight.",
            [one.limit for _, one in known],
        ),
        (
            "eta_seconds",
            "Until the job's last row is settled, as its finished rows and the lengths of its "
            "prompts tell.",
            [one.eta_s if one.state != "ended" else None for _, one in known],
        ),
        (
            "eta_low_seconds",
            "The same; in four cases of five it takes no less.",
            [one.eta_low_s if one.state != "ended" else None for _, one in known],
        ),
        (
            "eta_high_seconds",
            "The same; in four cases of five it takes no more.",
            [one.eta_high_s if one.state != "ended" else None for _, one in known],
        ),
        (
            "updated_timestamp_seconds",
            "When the job's worker said something last, by its own clock.",
            [one.updated_at.timestamp() for _, one in known],
        ),
    ):
        words = (words for words, _ in known)
        yield gauge(f"job_{name}", about, _LABELS, zip(words, values, strict=True))


def _counts(known: _Known) -> Iterator[Metric]:
    yield counter(
        "job_rows_done",
        "Settled rows; the resumed ones had been settled by earlier runs.",
        (*_LABELS, "outcome"),
        (
            ((*words, outcome), count)
            for words, one in known
            for outcome, count in (
                ("answered", one.run_answered),
                ("failed", one.run_failed),
                ("resumed", one.rows_done - one.run_answered - one.run_failed),
            )
        ),
    )
    yield gauge(
        "job_answers",
        "Settled rows by what their answers are, those of earlier runs included.",
        (*_LABELS, "verdict"),
        (
            ((*words, verdict.value), one.verdicts.get(verdict, 0))
            for words, one in known
            for verdict in ReplyVerdict
        ),
    )
    yield counter(
        "job_requests",
        "Requests that the job sent, repeated ones included.",
        _LABELS,
        ((words, one.requests) for words, one in known),
    )
    yield counter(
        "job_requests_repeated",
        "Requests sent again: after an error, or because the server was busy.",
        (*_LABELS, "reason"),
        (
            ((*words, reason), count)
            for words, one in known
            for reason, count in (("error", one.retries), ("busy", one.turned_away))
        ),
    )


def _histograms(known: _Known) -> Iterator[Metric]:
    labels = (*_LABELS, "gen_ai_request_model")
    told = [((*words, one.model), one) for words, one in known]
    yield histogram(
        "gen_ai_client_operation_duration_seconds",
        "From a job's request to its whole reply, by the job's worker.",
        labels,
        ((words, one.latency_s) for words, one in told),
    )
    yield histogram(
        "gen_ai_client_token_usage",
        "Tokens of each answered request, by its worker.",
        (*labels, "gen_ai_token_type"),
        (
            ((*words, kind), sizes)
            for words, one in told
            for kind, sizes in (("input", one.prompt_sizes), ("output", one.completion_sizes))
        ),
    )
