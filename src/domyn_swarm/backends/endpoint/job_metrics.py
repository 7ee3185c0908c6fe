"""The Prometheus metrics of a swarm's jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import Metric

from domyn_swarm.backends.endpoint.metric_families import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    MetricRow,
    families,
)
from domyn_swarm.backends.endpoint.use_meter import FollowedJob
from domyn_swarm.model import JobProgress, ReplyVerdict

_LABELS = ("swarm", "job_id", "job_name")
_NAME_LENGTH = 80
_MODEL = "gen_ai_request_model"


def job_families(swarm: str, jobs: Sequence[FollowedJob]) -> Iterator[Metric]:
    """The families of all jobs that reported recently."""
    known = [((swarm, job.job_id, job.progress.name[:_NAME_LENGTH]), job.progress) for job in jobs]
    return families(_OF_JOBS, _LABELS, known)


_Get = Callable[[JobProgress], float | None]


def _until_ended(get: _Get) -> _Get:
    return lambda job: None if job.state == "ended" else get(job)


_OF_JOBS: tuple[MetricRow[JobProgress], ...] = (
    MetricRow(GAUGE, "job_rows", "Rows of the job's input.", lambda job: job.rows_total),
    MetricRow(
        GAUGE,
        "job_active",
        "1 until the job reports that it has ended.",
        lambda job: job.state != "ended",
    ),
    MetricRow(
        GAUGE,
        "job_paused",
        "1 while the job waits for an endpoint that is gone.",
        lambda job: job.state == "paused",
    ),
    MetricRow(
        GAUGE,
        "job_rows_in_flight",
        "Rows in flight.",
        lambda job: job.in_flight,
    ),
    MetricRow(
        GAUGE,
        "job_concurrency_limit",
        "Calls that the job may have in flight.",
        lambda job: job.limit,
    ),
    MetricRow(
        GAUGE,
        "job_eta_seconds",
        "Until the job's last row is settled, as its finished rows and the lengths of its "
        "prompts tell.",
        _until_ended(lambda job: job.eta_s),
    ),
    MetricRow(
        GAUGE,
        "job_eta_low_seconds",
        "The same; in four cases of five it takes no less.",
        _until_ended(lambda job: job.eta_low_s),
    ),
    MetricRow(
        GAUGE,
        "job_eta_high_seconds",
        "The same; in four cases of five it takes no more.",
        _until_ended(lambda job: job.eta_high_s),
    ),
    MetricRow(
        GAUGE,
        "job_updated_timestamp_seconds",
        "When the job's worker last reported, by its own clock.",
        lambda job: job.updated_at.timestamp(),
    ),
    MetricRow(
        COUNTER,
        "job_rows_done",
        "Settled rows; the resumed ones had been settled by earlier runs.",
        lambda job: {
            "answered": job.run_answered,
            "failed": job.run_failed,
            "resumed": job.rows_done - job.run_answered - job.run_failed,
        },
        ("outcome",),
    ),
    MetricRow(
        GAUGE,
        "job_answers",
        "Settled rows by the kind of their answers, those of earlier runs included.",
        lambda job: {verdict.value: job.verdicts.get(verdict, 0) for verdict in ReplyVerdict},
        ("verdict",),
    ),
    MetricRow(
        COUNTER,
        "job_requests",
        "Requests that the job sent, repeated ones included.",
        lambda job: job.requests,
    ),
    MetricRow(
        COUNTER,
        "job_requests_repeated",
        "Requests sent again: after an error, or because the server was busy.",
        lambda job: {"error": job.retries, "busy": job.turned_away},
        ("reason",),
    ),
    MetricRow(
        HISTOGRAM,
        "gen_ai_client_operation_duration_seconds",
        "From a job's request to its whole reply, by the job's worker.",
        lambda job: {job.model: job.latency_s},
        (_MODEL,),
    ),
    MetricRow(
        HISTOGRAM,
        "gen_ai_client_token_usage",
        "Tokens of each answered request, by its worker.",
        lambda job: {
            (job.model, "input"): job.prompt_sizes,
            (job.model, "output"): job.completion_sizes,
        },
        (_MODEL, "gen_ai_token_type"),
    ),
)
