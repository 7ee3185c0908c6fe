"""Options that every job takes: how it goes about its rows, not what it asks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from domyn_swarm.batch.rows import RowTrace
from domyn_swarm.batch.verdicts import verdict_of
from domyn_swarm.errors import ConfigError
from domyn_swarm.model import Accept, Dedup, Record
from domyn_swarm.record import Meta

Kept = Literal["finish_reason", "verdict", "usage", "latency"]


class JobOptions(Record):
    """What a job says of itself; None: as the caller or the framework has it."""

    name: str | None = None
    id_column: str | None = None
    output_mode: Literal["append", "replace", "io_only"] | None = None
    max_concurrency: int | Literal["auto"] | None = None
    retries: Annotated[int, Meta(ge=0)] | None = None
    timeout_s: Annotated[float, Meta(gt=0)] | None = None
    timeout_retries: Annotated[int, Meta(ge=0)] | None = None
    max_failures: str | int | None = None  # "20" rows, or "5%"
    checkpoint_interval: Annotated[int, Meta(ge=1)] | None = None
    checkpoint_seconds: Annotated[float, Meta(gt=0)] | None = None
    accept: Accept | None = None
    dedup: Dedup | None = None
    keep: tuple[Kept, ...] = ()


OPTIONS = frozenset(JobOptions.field_names())


def job_options(given: dict[str, Any]) -> JobOptions:
    """The options, checked.

    Raises:
        ConfigError: names the option, what it is, and what it can be.
    """
    if isinstance(given.get("keep"), str):
        given = {**given, "keep": (given["keep"],)}
    from pydantic import ValidationError

    try:
        options = JobOptions.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False)
        same = [one for one in found if _place(one["loc"]) == _place(found[0]["loc"])]
        wanted = " or ".join(dict.fromkeys(one["msg"] for one in same))
        where = _place(found[0]["loc"])
        raise ConfigError(
            f"The job's option {where} is {found[0]['input']!r}: {wanted}."
        ) from error
    if isinstance(options.max_concurrency, int) and options.max_concurrency < 1:
        raise ConfigError(f"max_concurrency must be at least 1, not {options.max_concurrency}.")
    return options


def _place(loc: tuple[int | str, ...]) -> str:
    """An option, and which of its values; without the kinds that a value may be of."""
    return ".".join(str(part) for at, part in enumerate(loc) if not at or isinstance(part, int))


def kept_columns(keep: tuple[Kept, ...]) -> dict[str, Any]:
    """The columns that `keep` adds, with their types."""
    columns: dict[str, Any] = {}
    if "finish_reason" in keep:
        columns["finish_reason"] = str
    if "verdict" in keep:
        columns["verdict"] = str
    if "usage" in keep:
        columns |= {"prompt_tokens": int, "completion_tokens": int}
    if "latency" in keep:
        columns["latency_s"] = float
    return columns


def kept_values(keep: tuple[Kept, ...], trace: RowTrace, latency_s: float) -> dict[str, Any]:
    """What goes into those columns. `finish_reason` is that of the last reply's first choice."""
    values: dict[str, Any] = {}
    if "finish_reason" in keep:
        values["finish_reason"] = trace.finish_reasons[0] if trace.finish_reasons else None
    if "verdict" in keep:
        values["verdict"] = verdict_of(trace.code << 1).value
    if "usage" in keep:
        values["prompt_tokens"] = trace.prompt_tokens
        values["completion_tokens"] = trace.completion_tokens
    if "latency" in keep:
        values["latency_s"] = round(latency_s, 4)
    return values
