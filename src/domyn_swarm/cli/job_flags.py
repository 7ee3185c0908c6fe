"""The flags that say what a job is, declared once for all commands that take them."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from domyn_swarm.cli.options import (
    AcceptOption,
    ConcurrencyOption,
    ConfigOption,
    CpusOption,
    DataBackendOption,
    DelimiterOption,
    DownAfterOption,
    EncodingOption,
    MailOption,
    MaxFailuresOption,
    MaxGpuHoursOption,
    MemOption,
    NoContinueOption,
    OverwriteOption,
    PlacementOption,
    RayAddressOption,
    ReadKwargsOption,
    RecursiveOption,
    RetriesOption,
    RunHereOption,
    StopAfterOption,
    SwarmOption,
    TimeOption,
    TimeoutOption,
    TimeoutRetriesOption,
    TypesOption,
    WorkersOption,
    WriteKwargsOption,
    parse_json_object,
)

if TYPE_CHECKING:
    from domyn_swarm.config.sources import Layer

_P = ParamSpec("_P")


class OutputMode(StrEnum):
    """What becomes of the input's columns in the output."""

    APPEND = "append"
    REPLACE = "replace"
    IO_ONLY = "io_only"


class Fingerprint(StrEnum):
    """How many rows' inputs are compared with those that were answered."""

    FULL = "full"
    SAMPLE = "sample"
    OFF = "off"


class Dedup(StrEnum):
    """Which rows of one value share a request."""

    GREEDY = "greedy"
    ALWAYS = "always"


class Dispatching(StrEnum):
    """How the replica of a request is chosen."""

    AUTO = "auto"
    AFFINITY = "affinity"
    LEAST_LOAD = "least_load"


@dataclass(frozen=True, kw_only=True)
class JobFlags:
    """What was typed. A field has the name of the key in a job's file that it stands for, but for
    those that `layer` translates.
    """

    job: Annotated[
        str | None,
        typer.Argument(metavar="[MODULE:CLASS]", help="The job; a chat job when left out."),
    ] = None
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="The job as YAML; flags beside it win over it."
        ),
    ] = None
    input: Annotated[
        str | None, typer.Option("--input", metavar="PATH", help="The rows to ask.")
    ] = None
    output: Annotated[
        str | None, typer.Option("--output", metavar="PATH", help="Where answers go.")
    ] = None
    swarm: SwarmOption = None
    config: ConfigOption = None
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="Any OpenAI endpoint instead of a swarm."),
    ] = None
    model: Annotated[
        str | None, typer.Option("--model", help="The model's name; needed with --endpoint.")
    ] = None
    input_columns: Annotated[
        list[str] | None, typer.Option("--input-column", help="A column to read; repeatable.")
    ] = None
    output_columns: Annotated[
        list[str] | None, typer.Option("--output-column", help="A column to write; repeatable.")
    ] = None
    id_column: Annotated[
        str | None,
        typer.Option("--id-column", help="Names each row; its position does when left out."),
    ] = None
    output_mode: Annotated[
        OutputMode | None,
        typer.Option(
            "--output-mode",
            help="Input columns to keep: all, all but those asked, or those asked and the id.",
        ),
    ] = None
    shard_output: Annotated[
        bool,
        typer.Option("--shard-output", help="Make --output a folder of files, 250,000 rows each."),
    ] = False
    overwrite: OverwriteOption = False
    encoding: EncodingOption = None
    delimiter: DelimiterOption = None
    types: TypesOption = None
    infer_types: Annotated[
        bool,
        typer.Option("--infer-types", help="CSV to Parquet: types for cells that all have one."),
    ] = False
    recursive: RecursiveOption = False
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEMPLATE", help="What to ask, over the row's {{ columns }}."
        ),
    ] = None
    prompt_file: Annotated[
        Path | None,
        typer.Option("--prompt-file", metavar="FILE", help="The same, as a file in UTF-8."),
    ] = None
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEMPLATE", help="The system message.")
    ] = None
    system_file: Annotated[
        Path | None,
        typer.Option("--system-file", metavar="FILE", help="The same, as a file in UTF-8."),
    ] = None
    temperature: Annotated[
        str | None,
        typer.Option("--temperature", metavar="NUMBER", help="Of each request; 0: no chance."),
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=0, help="The longest answer, in tokens.")
    ] = None
    job_kwargs: Annotated[
        str | None,
        typer.Option("--job-kwargs", metavar="JSON", help="Options of the job and its requests."),
    ] = None
    limit: Annotated[
        int | None, typer.Option("--limit", min=0, help="Only the first so many rows.")
    ] = None
    name: Annotated[str | None, typer.Option("--job-name", help="A name to list it by.")] = None
    external_id: Annotated[
        str | None,
        typer.Option("--external-id", metavar="ID", help="An id of yours to find it by."),
    ] = None
    max_concurrency: ConcurrencyOption = None
    workers: WorkersOption = None
    data_backend: DataBackendOption = None
    backend_read_kwargs: ReadKwargsOption = None
    backend_write_kwargs: WriteKwargsOption = None
    ray_address: RayAddressOption = None
    retries: RetriesOption = None
    timeout_s: TimeoutOption = None
    timeout_retries: TimeoutRetriesOption = None
    max_failures: MaxFailuresOption = None
    accept: AcceptOption = None
    dedup: Annotated[
        Dedup | None,
        typer.Option(
            "--dedup",
            help="Rows of one value share a request: greedy, with temperature 0 only; or always.",
        ),
    ] = None
    dispatch: Annotated[
        Dispatching | None,
        typer.Option(
            "--dispatch",
            help="Which replica gets a request: one that has had what it begins with (affinity; "
            "auto: where requests begin alike and that pays), or the one with the fewest "
            "(least_load).",
        ),
    ] = None
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option("--checkpoint-dir", metavar="DIR", help="Where checkpoints lie."),
    ] = None
    checkpoint_tag: Annotated[
        str | None, typer.Option("--checkpoint-tag", help="Keeps apart what is else the same job.")
    ] = None
    checkpoint_interval: Annotated[
        int | None,
        typer.Option("--checkpoint-interval", min=1, metavar="ROWS", help="Rows between fsyncs."),
    ] = None
    checkpoint_seconds: Annotated[
        float | None,
        typer.Option(
            "--checkpoint-seconds", min=0.001, metavar="S", help="Seconds between fsyncs."
        ),
    ] = None
    fingerprint: Annotated[
        Fingerprint | None,
        typer.Option(
            "--fingerprint",
            help="Compare all rows with those that were answered (full), one in 64, or none (ids "
            "alone).",
        ),
    ] = None
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Ask every row again.")] = False
    no_checkpointing: Annotated[
        bool, typer.Option("--no-checkpointing", help="Leave no checkpoint behind.")
    ] = False
    placement: PlacementOption = None
    run_here: RunHereOption = False
    cpus: CpusOption = None
    mem: MemOption = None
    time_limit: TimeOption = None
    stop_after: StopAfterOption = None
    max_gpu_hours: MaxGpuHoursOption = None
    no_continue: NoContinueOption = False
    mail_user: MailOption = None
    down_after: DownAfterOption = False

    def layer(self) -> Layer:
        """What was typed, by the keys of a job's file, each with its flag."""
        from domyn_swarm.config.sources import Key, Layer

        if self.run_here and self.placement is not None:
            raise typer.BadParameter("--placement and --run-here exclude each other.")
        values: dict[str, Any] = {}
        places: dict[Key, str] = {}
        for flag, key, value in self._said():
            inner = values.setdefault(key[0], {}) if key[1:] else values
            inner[key[-1]] = value
            places |= {key[: length + 1]: flag for length in range(len(key))}
        if self.file is None and not {"input", "output"} <= values.keys():
            missing = "--output" if "input" in values else "--input"
            raise typer.BadParameter(f"{missing} is missing, and no --file says it.")
        return Layer(values, places)

    def _said(self) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        """Flag, key and value of all that was typed; those that win come last."""
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None or value is False or value == [] or one.name == "file":
                continue
            flag = FLAGS.get(one.name, one.name)
            if one.name in ("no_resume", "no_checkpointing"):
                yield flag, (one.name.removeprefix("no_"),), False
            elif one.name == "no_continue":
                yield flag, ("continues",), False
            elif one.name == "run_here":
                yield flag, ("placement",), "here"
            elif one.name == "types":
                yield flag, ("types",), _types(value)
            elif one.name in ("backend_read_kwargs", "backend_write_kwargs"):
                yield flag, (one.name,), parse_json_object(value, flag)
            elif one.name not in ("job_kwargs", "temperature", "max_tokens"):
                yield flag, (one.name,), _plain(value)
        for name, value in parse_json_object(self.job_kwargs or "{}", "--job-kwargs").items():
            yield "--job-kwargs", ("parameters", name), value
        if self.temperature is not None:
            yield "--temperature", ("parameters", "temperature"), _number(self.temperature)
        if self.max_tokens is not None:
            yield "--max-tokens", ("parameters", "max_tokens"), self.max_tokens


def _plain(value: Any) -> Any:  # noqa: ANN401 - a flag's
    return str(value) if isinstance(value, StrEnum | Path) else value


def _number(text: str) -> float:
    """As JSON has it: 0 and 0.0 are what `--job-kwargs` makes of them, and name the same job."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < 1e9:
        raise typer.BadParameter(f"--temperature {text!r}: write a number such as 0 or 0.7.")
    return found


def _types(text: str) -> dict[str, str]:
    pairs = [one.rpartition("=") for one in text.split(",") if one.strip()]
    if any(not name or not kind for name, _, kind in pairs):
        raise typer.BadParameter(f"--types {text!r}: write COLUMN=TYPE,COLUMN=TYPE.")
    return {name.strip(): kind.strip() for name, _, kind in pairs}


_HINTS = get_type_hints(JobFlags, include_extras=True)


def _declared(name: str) -> OptionInfo | ArgumentInfo:
    declared: OptionInfo | ArgumentInfo = _HINTS[name].__metadata__[0]
    return declared


_NAMES = [one.name for one in fields(JobFlags)]
FLAGS = {name: str(_declared(name).default) for name in _NAMES if name != "job"}
"""The flags by the names of their fields; Typer keeps an option's name where defaults are."""


def key_descriptions() -> dict[str, str]:
    """What each key of a job's file is about, as the help of its flag says it."""
    told = {one.name: str(_declared(one.name).help) for one in fields(JobFlags)}
    return told | {
        "parameters": told["job_kwargs"],
        "resume": "False: ask every row again.",
        "checkpointing": "False: leave no checkpoint behind.",
        "continues": "False: on Slurm, end with the first run.",
        "placement": f"{told['placement']} here: a process of the submitting machine.",
        "types": "Of CSV's columns, by name: int, float, bool, json; the others are text.",
    }


def taking_flags(command: Callable[Concatenate[JobFlags, _P], None]) -> Callable[..., None]:
    """A command for Typer, which takes the flags beside the command's own parameters."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    kind = inspect.Parameter.KEYWORD_ONLY
    typed = [
        inspect.Parameter(one.name, kind, default=one.default, annotation=_HINTS[one.name])
        for one in fields(JobFlags)
    ]
    rest = [one.replace(kind=kind) for one in own]

    @functools.wraps(command)
    def taken(**given: Any) -> None:
        chosen: Callable[..., None] = command
        chosen(JobFlags(**{name: given.pop(name) for name in _NAMES}), **given)

    parameters = [*typed, *rest]
    taken.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    taken.__annotations__ = {one.name: one.annotation for one in parameters}
    return taken
