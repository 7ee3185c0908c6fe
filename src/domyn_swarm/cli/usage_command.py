"""The command `usage`: what GPUs were used for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli import candidates
from domyn_swarm.cli.rendering import (
    Column,
    print_gap,
    print_note,
    print_pairs,
    print_record,
    print_table,
)
from domyn_swarm.cli.shared_options import (
    Format,
    FormatOption,
    JsonOption,
    YamlOption,
    chosen_format,
)

if TYPE_CHECKING:
    from domyn_swarm.services.usage_report import UsageReport
    from domyn_swarm.swarm.snapshot import Usage

_ROWS = 40  # of a table; --json has all
_COLUMNS = (
    ("queued", Column("queued", whole=True, spare=8)),
    ("starting", Column("start", whole=True, spare=4)),
    ("working", Column("work", whole=True, spare=1)),
    ("repeated", Column("redone", whole=True, spare=6)),
    ("idle_rows_waiting", Column("wait", whole=True, spare=3)),
    ("idle_without_work", Column("idle", whole=True, spare=2)),
    ("draining", Column("drain", whole=True, spare=7)),
    ("dead", Column("dead", whole=True, spare=5)),
    ("unknown", Column("?", whole=True, spare=9)),
)  # uses and their columns
_OF_JOBS = ("working", "repeated", "idle_rows_waiting")


def _moment(since: str | None) -> datetime | None:
    """A time before now, or a date. A number without a unit is refused: `10:00` may be ten minutes,
    ten hours or a time of day.
    """
    if since is None:
        return None
    from domyn_swarm.config.units import duration_s
    from domyn_swarm.model import utc_now

    now = utc_now()
    try:
        if since[-1:] in tuple("mhd"):
            return now - timedelta(seconds=duration_s(since))
        moment = datetime.fromisoformat(since).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{since!r}: write how long ago, like 7d, 12h or 90m, or a date like 2026-11-30."
        ) from None
    if moment > now:
        raise typer.BadParameter(f"{since!r} has not come yet: now it is {now:%Y-%m-%d %H:%M} UTC.")
    return moment


def usage(
    swarm: Annotated[
        str | None,
        typer.Option(
            "--swarm",
            metavar="NAME",
            help="Of all swarms that had this name, by replica.",
            autocompletion=candidates.swarms,
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="ID", help="Of one job.", autocompletion=candidates.jobs),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="U", help="Of one user.")] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="From then on: 7d, 12h, 2026-11-30."),
    ] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Show what GPUs were used for: by swarm, replica, job and user; swarms that are gone included.

    Hours of GPUs; of replicas, where a swarm has no GPUs.

    Example: domyn-swarm usage --since 7d
    """
    from domyn_swarm.cli.console import say
    from domyn_swarm.services.usage import UsageService

    form = chosen_format(output, as_json, as_yaml)
    report = UsageService().usage(swarm=swarm, job=job, user=user, since=_moment(since))
    for one in report.unread:
        say(f"warning: not counted: {one}")
    narrowed = (swarm, job, user) != (None, None, None)
    show_usage(report, form, by_replica=swarm is not None, jobs=narrowed)


def show_usage(
    report: UsageReport, output: Format, *, by_replica: bool = False, jobs: bool = False
) -> None:
    """GPU time: a line for each swarm or replica, and for each job if wanted."""
    if output is not Format.TABLE:
        print_record(report, output)
        return
    if not report.swarms:
        print_note("Nothing has been used yet: the ledger begins with the next `up`.")
        return
    gpus = any(one.held_gpu_s or one.gpus_per_replica for one in report.swarms)
    unit = "GPU-hours" if gpus else "replica-hours: no GPUs"
    rows: list[tuple[str, Usage]] = [(one.name, one) for one in report.swarms]
    if by_replica:
        rows = [
            (f"{one.name} {replica.replica}", replica)
            for one in report.swarms
            for replica in one.replicas
        ]
    _print("replica" if by_replica else "swarm", rows, report.total, gpus=gpus)
    if jobs and report.jobs:
        print_gap()
        own = [column for column in _COLUMNS if column[0] in _OF_JOBS]
        _print("job", [(one.job_id, one) for one in report.jobs], None, own, gpus=gpus)
    causes = _causes(report.total, gpus=gpus)
    if causes or report.total.energy_kwh is not None:
        print_gap()
        print_pairs([*causes, *_energy(report.total)])
    print_note(unit)


def _print(
    what: str,
    rows: Sequence[tuple[str, Usage]],
    total: Usage | None,
    columns: Sequence[tuple[str, Column]] = _COLUMNS,
    *,
    gpus: bool,
) -> None:
    uses = [use for use, _ in columns]
    shown = [(name, *_cells(one, uses, gpus=gpus)) for name, one in rows[-_ROWS:]]
    if total is not None and len(rows) != 1:
        shown.append(("total", *_cells(total, uses, gpus=gpus)))
    shown_columns = (Column(what, whole=True), Column("held", whole=True))
    print_table((*shown_columns, *(column for _, column in columns)), shown)
    if len(rows) > _ROWS:
        print_note(f"before these: {len(rows) - _ROWS}; --json has all")


def _cells(one: Usage, uses: Sequence[str], *, gpus: bool) -> list[str]:
    spent = dict.fromkeys(uses, 0.0)
    for part in one.uses:
        if part.use.value in spent:
            spent[part.use.value] += part.gpu_s if gpus else part.replica_s
    held = one.held_gpu_s if gpus else one.held_replica_s
    return [hours(value) for value in (held, *spent.values())]


def hours(seconds: float) -> str:
    """Hours in at most six characters: `0.042`, `12.3`, `1234`."""
    value = seconds / 3600
    if value == 0:
        return "-"
    if value < 0.0005:
        return "<.001"
    return f"{value:.3f}" if value < 1 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _causes(total: Usage, *, gpus: bool) -> list[tuple[str, str]]:
    """The parts of start, wait and unknown time, the largest first."""
    names = {
        "starting": "starts",
        "idle_rows_waiting": "rows waited for",
        "dead": "dead",
        "unknown": "unknown",
    }
    found = []
    for use, name in names.items():
        parts = sorted(
            (
                (one.gpu_s if gpus else one.replica_s, one.cause)
                for one in total.uses
                if one.use == use
            ),
            reverse=True,
        )
        if parts:
            found.append((name, ", ".join(f"{cause} {hours(value)}" for value, cause in parts)))
    return found


def _energy(total: Usage) -> list[tuple[str, str]]:
    if total.energy_kwh is None:
        return []
    share = total.energy_gpu_s / total.held_gpu_s if total.held_gpu_s else 0.0
    part = "" if share > 0.995 else f", counted in {share:.0%} of the time"
    return [("energy", f"{total.energy_kwh:.3g} kWh{part}")]


def usage_line(one: Usage) -> str:
    """The usage in one line, for `status`."""
    gpus = bool(one.held_gpu_s)
    held = one.held_gpu_s if gpus else one.held_replica_s
    unit = "GPU-hours" if gpus else "replica-hours"
    names = {
        "working": "working",
        "repeated": "working on what is repeated",
        "starting": "starting",
        "idle_rows_waiting": "idle with rows waiting",
        "idle_without_work": "idle",
        "draining": "draining",
        "dead": "dead",
        "unknown": "unknown",
    }
    shares: dict[str, float] = {}
    for part in one.uses:
        if part.use.value in names:
            value = part.gpu_s if gpus else part.replica_s
            shares[part.use.value] = shares.get(part.use.value, 0.0) + value
    parts = [
        f"{value / held:.0%} {names[use]}"
        for use, value in sorted(shares.items(), key=lambda item: -item[1])
        if held and value / held >= 0.005
    ]
    return f"{hours(held)} {unit}: {', '.join(parts)}" if parts else f"{hours(held)} {unit}"
