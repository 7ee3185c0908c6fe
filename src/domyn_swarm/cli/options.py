"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import json
import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from domyn_swarm.cli import candidates

if TYPE_CHECKING:
    from collections.abc import Callable

    from domyn_swarm.model import JobHandle
    from domyn_swarm.planning.plan import JobResources


class Format(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Placement(StrEnum):
    """Where a job of a Slurm swarm runs."""

    STEP = "step"
    JOB = "job"


class DataBackendName(StrEnum):
    """Libraries of frames."""

    ARROW = "arrow"
    PANDAS = "pandas"
    POLARS = "polars"
    RAY = "ray"


FormatOption = Annotated[
    Format, typer.Option("--format", "-o", help="How to print it.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
YamlOption = Annotated[bool, typer.Option("--yaml", help="Short for --format yaml.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The swarm's YAML file.", metavar="FILE")
]
FileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="The swarm's YAML file; short for -c FILE.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", "-n", metavar="SWARM", help="The swarm's name.")
]


def chosen_file(file: Path | None, config: Path | None) -> Path:
    """The configuration that an argument or `-c` names; exactly one of them must."""
    if (file is None) == (config is None):
        raise typer.BadParameter("give the swarm's YAML file, once: as FILE or with -c (--config).")
    return file or config or Path()


SwarmOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        "-n",
        metavar="SWARM",
        help="The swarm; may be left out when only one is live.",
        autocompletion=candidates.swarms,
    ),
]


RefArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB",
        help="The job's id, or its external id.",
        autocompletion=candidates.jobs,
    ),
]
ExternalIdOption = Annotated[
    str | None,
    typer.Option(
        "--external-id",
        metavar="ID",
        help="The id you gave the job.",
        autocompletion=candidates.external_ids,
    ),
]
HandleOption = Annotated[
    str | None,
    typer.Option(
        "--handle-json", metavar="FILE", help="A handle as `job submit` printed it; - is stdin."
    ),
]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Return once it is submitted.")]
NoProgressOption = Annotated[bool, typer.Option("--no-progress", help="Show no bar.")]


def parse_concurrency(value: str | None) -> str | None:
    """`auto`, or a whole number of at least 1."""
    if value in (None, "auto") or (value.isascii() and value.isdecimal() and int(value) >= 1):
        return value
    raise typer.BadParameter("must be `auto` or a whole number of at least 1.")


def concurrency_of(value: str) -> int | Literal["auto"]:
    """What `parse_concurrency` let through, as requests hold it."""
    return "auto" if value == "auto" else int(value)


ConcurrencyOption = Annotated[
    str | None,
    typer.Option(
        "--max-concurrency",
        metavar="N|auto",
        callback=parse_concurrency,
        help="Rows in flight, over all workers.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=256, metavar="N", help="Processes to share the rows."),
]
RetriesOption = Annotated[
    int | None, typer.Option("--retries", min=0, help="Repeats of a request that failed.")
]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", min=0.001, metavar="S", help="Seconds per request.")
]
TimeoutRetriesOption = Annotated[
    int | None,
    typer.Option(
        "--timeout-retries", min=0, help="Repeats, of those, after no reply came in time."
    ),
]
MaxFailuresOption = Annotated[
    str | None,
    typer.Option("--max-failures", metavar="N|P%", help="Stop when more rows than this fail."),
]

PlacementOption = Annotated[
    Placement | None,
    typer.Option(
        "--placement",
        help="Share the endpoint's Slurm allocation (followed jobs do), or get one of its own.",
    ),
]
RunHereOption = Annotated[
    bool,
    typer.Option("--run-here", help="Drive the endpoint from this machine, as a process of it."),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace an output that another job, or this one over another input, wrote.",
    ),
]
DownAfterOption = Annotated[
    bool, typer.Option("--down-after", help="Shut the swarm down when the job has ended.")
]
CpusOption = Annotated[int | None, typer.Option("--cpus", min=1, help="CPUs for the job.")]
MemOption = Annotated[
    str | None, typer.Option("--mem", metavar="SIZE", help="Memory for the job: 8G, 500M.")
]
TimeOption = Annotated[
    str | None,
    typer.Option(
        "--time", metavar="LIMIT", help="When to end it: 12:00:00, 90 (minutes), 2-00:00:00."
    ),
]
StopAfterOption = Annotated[
    str | None,
    typer.Option(
        "--stop-after",
        metavar="TIME",
        help="End it so long after it began, all its runs together: 3d, 12h, 2-12:00:00.",
    ),
]
MaxGpuHoursOption = Annotated[
    float | None,
    typer.Option(
        "--max-gpu-hours",
        metavar="HOURS",
        help="End it once it has cost so many GPU-hours, all its runs together; answers are kept.",
    ),
]
NoContinueOption = Annotated[
    bool,
    typer.Option(
        "--no-continue",
        help="Slurm: end with its first run, at its time limit or when its node is lost.",
    ),
]
MailOption = Annotated[
    str | None,
    typer.Option("--mail-user", metavar="ADDRESS", help="Slurm mails there when it has ended."),
]


def check_gpu_hours(hours: float | None) -> None:
    """Refuse a budget that is none.

    Raises:
        typer.BadParameter: it is not a number above 0.
    """
    if hours is not None and not 0 < hours < math.inf:
        raise typer.BadParameter("--max-gpu-hours: write a number above 0, such as 100 or 0.5.")


def resources_of(
    *,
    detached: bool,
    placement: Placement | None,
    run_here: bool,
    cpus: int | None,
    mem: str | None,
    time: str | None,
    mail_user: str | None,
    stop_after: str | None = None,
    max_gpu_hours: float | None = None,
    no_continue: bool = False,
) -> JobResources:
    """What the flags ask of the platform."""
    from domyn_swarm.config.backends import duration_s, memory_gb, time_limit_s
    from domyn_swarm.planning.plan import JobResources

    if run_here and placement is not None:
        raise typer.BadParameter("--placement and --run-here exclude each other.")
    try:
        size = None if mem is None else memory_gb(mem)
    except ValueError as error:
        raise typer.BadParameter(f"--mem: {error}.") from None

    check_gpu_hours(max_gpu_hours)

    def seconds(
        flag: str, text: str | None, read: Callable[[str], float] = time_limit_s
    ) -> float | None:
        try:
            found = None if text is None else read(text)
        except ValueError as error:
            raise typer.BadParameter(f"{flag}: {error}.") from None
        if found == math.inf:
            raise typer.BadParameter(
                f"{flag}: write more than 0; without {flag} it is the default."
            )
        return found

    return JobResources(
        detached=detached,
        placement="here" if run_here else None if placement is None else placement.value,
        cpus=cpus,
        memory_gb=size,
        time_limit_s=seconds("--time", time),
        stop_after_s=seconds("--stop-after", stop_after, duration_s),
        max_gpu_hours=max_gpu_hours,
        continues=False if no_continue else None,
        mail_user=mail_user,
    )


def chosen_format(output: Format, as_json: bool, as_yaml: bool) -> Format:
    """The format that the three options together ask for."""
    if as_json and as_yaml:
        raise typer.BadParameter("--json and --yaml exclude each other.")
    if as_json:
        return Format.JSON
    return Format.YAML if as_yaml else output


class AcceptName(StrEnum):
    """Which answers count."""

    COMPLETE = "complete"
    ANY = "any"


AcceptOption = Annotated[
    AcceptName | None,
    typer.Option(
        "--accept",
        help="Which answers count: complete ones, or any. Left out: all that say something, "
        "and refusals; of structured output complete ones.",
    ),
]

DataBackendOption = Annotated[
    DataBackendName | None,
    typer.Option("--data-backend", help="The library that reads the input; ray: works on it too."),
]
ReadKwargsOption = Annotated[
    str | None,
    typer.Option(
        "--backend-read-kwargs", metavar="JSON", help="Options of that library's own reader."
    ),
]
WriteKwargsOption = Annotated[
    str | None,
    typer.Option(
        "--backend-write-kwargs", metavar="JSON", help="Options of its writer of Parquet."
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="ADDRESS", help="The cluster of --data-backend ray."),
]


EncodingOption = Annotated[
    str | None, typer.Option("--encoding", metavar="NAME", help="Of text files: cp1252, utf-16, …")
]
DelimiterOption = Annotated[
    str | None,
    typer.Option("--delimiter", metavar="CHARACTER", help="Of CSV and TSV: ';', '|', tab."),
]
TypesOption = Annotated[
    str | None,
    typer.Option(
        "--types",
        metavar="COLUMN=TYPE,…",
        help="Of CSV's columns: int, float, bool, json; the others are text.",
    ),
]
RecursiveOption = Annotated[
    bool, typer.Option("--recursive", help="Read a folder's sub-folders as well.")
]


def parse_json_object(value: str, flag: str) -> dict[str, Any]:
    """A JSON object from a flag's value; anything else is a usage error that names the flag."""
    example = "write an object such as '{\"temperature\": 0.2}'"
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{flag} {value!r:.80} is not JSON: {error}; {example}.") from None
    if not isinstance(parsed, dict):
        raise typer.BadParameter(f"{flag} {value!r:.80} is not a JSON object; {example}.")
    return parsed


def named_swarm(context: typer.Context, value: str | None) -> str | None:
    """Of a swarm's name itself, of its YAML file the name that it gives: `status swarm.yaml`. No
    name of a swarm has a full stop.
    """
    if value is None or context.resilient_parsing or not value.endswith((".yaml", ".yml")):
        return value
    from domyn_swarm.config import swarm_name

    return swarm_name(Path(value))


def chosen_job(
    ref: str | None, external_id: str | None, handle_json: str | None
) -> str | JobHandle:
    """The job that the three ways of naming one mean; exactly one of them must be used."""
    given = [value for value in (ref, external_id, handle_json) if value is not None]
    if len(given) != 1:
        raise typer.BadParameter("name the job by its id, by --external-id or by --handle-json.")
    return given[0] if handle_json is None else _read_handle(handle_json)


def _read_handle(source: str) -> JobHandle:
    from pydantic import ValidationError

    from domyn_swarm.model import JobHandle

    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
        return JobHandle.model_validate_json(text)
    except OSError as error:
        raise typer.BadParameter(f"{source} cannot be read: {error.strerror}.") from None
    except ValidationError:
        raise typer.BadParameter("not a job's handle, as `job submit` prints it.") from None
