"""The `rehearse` command: a campaign in virtual time."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from domyn_swarm.cli.console import say
from domyn_swarm.cli.flags import taking_flags
from domyn_swarm.cli.job_flags import LimitFlags
from domyn_swarm.cli.rendering import Column, figure, print_pairs, print_record, print_table
from domyn_swarm.cli.shared_options import (
    ConfigOption,
    FileArgument,
    Format,
    FormatOption,
    JsonOption,
    OverridesOption,
    ReplicasOption,
    YamlOption,
    chosen_file,
    chosen_format,
)
from domyn_swarm.errors import quantity

if TYPE_CHECKING:
    from domyn_swarm.swarm.campaign import CampaignRehearsal

_DAY_S = 86_400.0
_MOST_SPREAD = 100.0
_MOST_PER_H = 3600.0  # once a second
_COUNTED = {"time limit": "drained for the limit", "preempted": "drained when preempted"}
"""What became of replicas, where the word alone says too little."""


@taking_flags
def rehearse(
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of the job.")],
    file: FileArgument = None,
    config: ConfigOption = None,
    replicas: ReplicasOption = None,
    settings: OverridesOption = None,
    row_seconds: Annotated[
        float,
        typer.Option(
            "--row-seconds", min=0.001, max=_DAY_S, help="That a row is in flight, on average."
        ),
    ] = 20.0,
    row_spread: Annotated[
        float,
        typer.Option(
            "--row-spread",
            min=0,
            max=_MOST_SPREAD,
            help="Deviation of that by its mean; lognormal.",
        ),
    ] = 1.0,
    in_flight: Annotated[
        int, typer.Option("--in-flight", min=1, help="Rows at once at each replica.")
    ] = 16,
    time_limit: Annotated[
        str | None,
        typer.Option(
            "--time-limit",
            metavar="LIMIT[/LIMIT]",
            help="Of a replica's allocation, or between two: 4h/24h; the file's when left out.",
        ),
    ] = None,
    job_time: Annotated[
        str | None,
        typer.Option("--time", metavar="LIMIT", help="Of one run of the job: 24h."),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option("--wait", metavar="TIME", help="In the queue, on average; 5m when left out."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start", metavar="TIME", help="From allocation to serving; 4m when left out."
        ),
    ] = None,
    preempted: Annotated[
        float | None,
        typer.Option(
            "--preempted",
            min=0,
            max=_MOST_PER_H,
            metavar="SHARE",
            help="Of allocations, each hour: 0.05.",
        ),
    ] = None,
    job_preempted: Annotated[
        float,
        typer.Option(
            "--job-preempted",
            min=0,
            max=_MOST_PER_H,
            metavar="SHARE",
            help="Of the job's allocations, each hour.",
        ),
    ] = 0.0,
    grace_seconds: Annotated[
        float,
        typer.Option(
            "--grace-seconds", min=0, max=_DAY_S, help="From a preemption's signal to the kill."
        ),
    ] = 30.0,
    failures: Annotated[
        float,
        typer.Option(
            "--failures", min=0, max=_MOST_PER_H, metavar="SHARE", help="Of engines, each hour."
        ),
    ] = 0.0,
    history: Annotated[
        Path | None,
        typer.Option(
            "--history",
            metavar="FILE",
            help="Past jobs of the site: sacct -X -P -o Submit,Start,ElapsedRaw,State",
        ),
    ] = None,
    *,
    limits: LimitFlags,
    seed: Annotated[int, typer.Option("--seed", help="Of all that is drawn.")] = 0,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Rehearse a campaign in virtual time: what its GPUs would do, and what settings would change.

    Nothing is started. Time limits, draining, restarts, the job's next runs, dispatch, budget and
    forecast are the rules of the real thing; what the scheduler does is assumed, or taken from the
    site's past. The same seed gives the same campaign.

    Example: domyn-swarm rehearse -c swarm.yaml --rows 100000000 --preempted 0.05
    """
    from domyn_swarm.services.requests import UpRequest
    from domyn_swarm.services.swarms import SwarmService
    from domyn_swarm.swarm.job_file import read_resources

    form = chosen_format(output, as_json, as_yaml)
    ends = read_resources(limits.layer(), command="rehearse", detached=True)
    waits_s = _seconds("--wait", wait)
    fields: dict[str, Any] = {
        "limit_s": _limits(time_limit),
        "job_limit_s": _seconds("--time", job_time),
        "wait_s": None if waits_s is None else (waits_s,),
        "start_s": _seconds("--start", start),
        "preempted_per_h": preempted,
        "stop_after_s": ends.stop_after_s,
        "max_gpu_hours": ends.max_gpu_hours,
        "job_preempted_per_h": job_preempted,
        "rows": rows,
        "row_s": row_seconds,
        "row_cv": row_spread,
        "in_flight": in_flight,
        "grace_s": grace_seconds,
        "failures_per_h": failures,
        "seed": seed,
    }
    request = UpRequest(
        config=chosen_file(file, config), replicas=replicas, overrides=tuple(settings or ())
    )
    given = {name: value for name, value in fields.items() if value is not None}
    show_rehearsal(SwarmService().rehearse(request, given, history=history), form)


def _seconds(flag: str, text: str | None) -> float | None:
    from domyn_swarm.config.units import duration_s
    from domyn_swarm.swarm.job_keys import finite

    if text is None:
        return None
    try:
        return finite(duration_s, text, "for the default")
    except ValueError as error:
        raise typer.BadParameter(f"{flag}: {error}.") from None


def _limits(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, _, high = text.partition("/")
    found = _seconds("--time-limit", low), _seconds("--time-limit", high or low)
    if found[0] is None or found[1] is None or found[0] > found[1]:
        raise typer.BadParameter("--time-limit: write the shorter one first, as in 4h/24h.")
    return found[0], found[1]


def show_rehearsal(found: CampaignRehearsal, output: Format) -> None:
    """The GPU time of a campaign, and the results of other settings."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    from domyn_swarm.services.charts import duration

    one, given = found.result, found.assumptions
    unit = "GPU-hours" if given.gpus_per_replica else "replica-hours"
    said = "-"
    if one.forecast is not None:
        low, high = duration(one.forecast.low_s), duration(one.forecast.high_s)
        said = f"{low} to {high}; it took {duration(one.forecast.truth_s)}"
    print_pairs(
        [
            ("ended", f"{one.ended} after {duration(one.duration_s)}"),
            (
                "rows",
                f"{one.rows_settled} of {one.rows} settled, {one.rows_asked_again} asked again",
            ),
            ("by hand", quantity(one.by_hand, "time")),
            ("used", f"{figure(one.used_h, 4)} {unit}"),
            ("ideal", f"{figure(one.ideal_h, 4)} {unit} ({one.efficiency:.1%} of what was used)"),
            *((f"lost: {name}", _share(hours, one.used_h)) for name, hours in _largest(one.idle_h)),
            *((_COUNTED.get(name, name), str(count)) for name, count in one.happened.items()),
            ("forecast half-way", said),
        ]
    )
    typer.echo()
    print_table(
        (
            Column("with"),
            Column("takes", whole=True),
            Column(unit, whole=True),
            Column("ideal by used", whole=True, spare=1),
        ),
        [
            ("as it is", duration(one.duration_s), figure(one.used_h, 4), f"{one.efficiency:.1%}"),
            *(
                (
                    other.changed,
                    duration(other.duration_s),
                    figure(other.used_h, 4),
                    f"{other.efficiency:.1%}",
                )
                for other in found.alternatives
            ),
        ],
    )
    for remark in found.remarks:
        say(f"{remark}.")
    if one.ended != "settled":
        say("The campaign does not come to its end under these assumptions.")


def _share(hours: float, used: float) -> str:
    return f"{figure(hours, 4)} ({hours / used:.2%})" if used else "0"


def _largest(idle: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(idle.items(), key=itemgetter(1), reverse=True)
