"""A job's run options as users set them: each option once, with its type, bounds, default and help
text.

The records are parts of job classes (`JobOptions`), submissions (`RunOptions`), job files
(`JobFile`) and resubmissions (`JobChanges`); flags of commands are made from them
(`cli.job_flags`). Next to each record there are the same options as typed keywords of Python's
functions, which editors complete.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, TypeVar

from domyn_swarm.batch.input.reading import InputReading
from domyn_swarm.errors import ConfigError
from domyn_swarm.model import Accept, Dedup, Dispatching, Fingerprint
from domyn_swarm.record import Before, Meta, Record, about

Concurrency = int | Literal["auto"]
OutputMode = Literal["append", "replace", "io_only"]
DataBackendName = Literal["arrow", "pandas", "polars", "ray"]
_Count = Annotated[int, Meta(ge=0)]
_Rows = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(gt=0)]
_Options = TypeVar("_Options", bound=Record)


def _concurrency(value: object) -> object:
    if value is None or value == "auto":
        return value
    text = str(value)
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise ValueError(f"must be auto or a whole number of at least 1, not {value!r}")
    return int(text)


def failure_limit(text: str) -> tuple[int | None, float | None]:
    """The number of rows, or the share of the settled rows, that `20` or `5%` denotes.

    Raises:
        ValueError: it is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if match is None or (match[2] and float(match[1]) > 100) or (not match[2] and "." in match[1]):
        raise ValueError(f"must be a number of rows or a share such as 5%, not {text!r}")
    return (None, float(match[1]) / 100) if match[2] else (int(match[1]), None)


def _failures(value: object) -> object:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str):
        failure_limit(text)
    return text


def given_options(kind: type[_Options], given: Mapping[str, Any], of: str) -> _Options:
    """The options that a caller passed by name; `of` begins the sentence about an invalid one.

    Raises:
        ConfigError: names the option, its value, and the possible values.
    """
    try:
        return kind.model_validate(given)
    except ValueError as error:
        from pydantic import ValidationError  # here: what is right needs no pydantic

        if not isinstance(error, ValidationError):
            raise
        mistakes = error.errors(include_url=False)
        where = _place(mistakes[0]["loc"], given)
        wanted = [str(one["msg"]) for one in mistakes if _place(one["loc"], given) == where]
        reason = " or ".join(dict.fromkeys(wanted))
        if mistakes[0]["type"] == "value_error":  # our message, which includes the value
            problem = reason.removeprefix("Value error, ")
        else:
            problem = f"is {mistakes[0]['input']!r}: {reason}"
        raise ConfigError(f"{of} {where} {problem}.") from error


def _place(loc: tuple[int | str, ...], given: object) -> str:
    """The option and the affected value in it; without pydantic's names of union members."""
    names: list[str] = []
    for part in loc:
        if isinstance(given, Mapping):
            given = given.get(part)
        elif isinstance(part, int) and isinstance(given, list | tuple):
            given = given[part]
        else:
            continue
        names.append(str(part))
    return ".".join(names)


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_Names = Annotated[
    tuple[str, ...],
    Before(_names, {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}),
]


class AskingOptions(Record):
    """How rows are sent. None: as the job sets it, or the default."""

    max_concurrency: Annotated[
        Concurrency | None,
        Before(_concurrency),
        about("Rows in flight, over all workers.", metavar="N|auto"),
    ] = None
    retries: Annotated[_Count | None, about("Repeats of a request that failed.")] = None
    timeout_s: Annotated[
        _Seconds | None, about("Seconds per request.", flag="--timeout", metavar="S")
    ] = None
    timeout_retries: Annotated[
        _Count | None, about("Repeats, of those, after no reply came in time.")
    ] = None
    max_failures: Annotated[
        str | None,
        Before(_failures),
        about("Stop when more rows than this fail.", metavar="N|P%"),
    ] = None
    accept: Annotated[
        Accept | None,
        about(
            "Which answers count: complete ones, or any. Left out: all that say something, "
            "and refusals; of structured output complete ones."
        ),
    ] = None


class AskingKeywords(TypedDict, total=False):
    """The same as keywords of Python."""

    max_concurrency: Concurrency | None
    retries: int | None
    timeout_s: float | None
    timeout_retries: int | None
    max_failures: int | str | None
    """Stop when more rows fail: `20` rows, or `"5%"`."""
    accept: Accept | None


class KeepingOptions(AskingOptions):
    """The same, and how rows are identified and answers are kept: also set by classes of jobs."""

    id_column: Annotated[str | None, about("Names each row; its position does when left out.")] = (
        None
    )
    output_mode: Annotated[
        OutputMode | None,
        about("Input columns to keep: all, all but those asked, or those asked and the id."),
    ] = None
    checkpoint_interval: Annotated[_Rows | None, about("Rows between fsyncs.", metavar="ROWS")] = (
        None
    )
    checkpoint_seconds: Annotated[
        _Seconds | None, about("Seconds between fsyncs.", metavar="S")
    ] = None
    dedup: Annotated[
        Dedup | None,
        about("Rows of one value share a request: greedy, with temperature 0 only; or always."),
    ] = None


class KeepingKeywords(AskingKeywords, total=False):
    """The same as keywords of Python."""

    name: str | None
    id_column: str | None
    """The column that identifies rows instead of their position: unique and never null."""
    output_mode: OutputMode | None
    checkpoint_interval: int | None
    checkpoint_seconds: float | None
    dedup: Dedup | None


class ChangeableOptions(AskingOptions):
    """Options that may change when a job is resubmitted."""

    workers: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None,  # None: 1, or one for each node of Ray's
        about("Processes to share the rows.", metavar="N"),
    ] = None
    overwrite: Annotated[
        bool, about("Replace an output that another job, or this one over another input, wrote.")
    ] = False


class RunOptions(ChangeableOptions, KeepingOptions, InputReading):
    """The submitter's options, besides swarm and job."""

    input: Annotated[str, about("The input rows.", metavar="PATH")]
    output: Annotated[str, about("Where answers go.", metavar="PATH")]
    input_columns: Annotated[
        _Names, about("A column to read; repeatable.", flag="--input-column")
    ] = ()
    output_columns: Annotated[
        _Names, about("A column to write; repeatable.", flag="--output-column")
    ] = ()
    shard_output: Annotated[bool, about("Make --output a folder of files, 250,000 rows each.")] = (
        False
    )
    infer_types: Annotated[bool, about("CSV to Parquet: types for cells that all have one.")] = (
        False
    )
    limit: Annotated[_Count | None, about("Process only the first N rows.")] = None
    external_id: Annotated[str | None, about("An id of yours to find it by.", metavar="ID")] = None
    data_backend: Annotated[
        DataBackendName | None,
        about("The library that reads the input; ray: works on it too."),
    ] = None
    backend_read_kwargs: Annotated[
        dict[str, Any], about("Options of that library's own reader.", metavar="JSON")
    ] = {}
    backend_write_kwargs: Annotated[
        dict[str, Any], about("Options of its writer of Parquet.", metavar="JSON")
    ] = {}
    ray_address: Annotated[
        str | None, about("The cluster of --data-backend ray.", metavar="ADDRESS")
    ] = None
    dispatch: Annotated[
        Dispatching,
        about(
            "Which replica gets a request: one that has had what it begins with (affinity; "
            "auto: where requests begin alike and that pays), or the one with the fewest "
            "(least_load)."
        ),
    ] = "auto"
    checkpoint_tag: Annotated[str | None, about("Keeps apart what is else the same job.")] = None
    fingerprint: Annotated[
        Fingerprint,
        about(
            "Compare all rows with those that were answered (full), one in 64, or none (ids alone)."
        ),
    ] = "full"
    resume: Annotated[
        bool,
        about("False: ask every row again.", flag="--no-resume", flag_help="Ask every row again."),
    ] = True
    checkpointing: Annotated[
        bool,
        about(
            "False: leave no checkpoint behind.",
            flag="--no-checkpointing",
            flag_help="Leave no checkpoint behind.",
        ),
    ] = True


class ReadingKeywords(TypedDict, total=False):
    """`InputReading` as keywords of Python: for rows that are given by their path."""

    encoding: str
    delimiter: str | None
    types: Mapping[str, str]
    recursive: bool


class SubmissionKeywords(KeepingKeywords, ReadingKeywords, total=False):
    """`RunOptions` as keywords of Python, without input and output."""

    workers: int | None
    overwrite: bool
    input_columns: Sequence[str] | str
    """The columns of an item, instead of the job's input columns."""
    output_columns: Sequence[str] | str
    """Names for the output columns, in their order."""
    shard_output: bool
    infer_types: bool
    limit: int | None
    external_id: str | None
    data_backend: DataBackendName | None
    backend_read_kwargs: dict[str, Any]
    backend_write_kwargs: dict[str, Any]
    ray_address: str | None
    dispatch: Dispatching
    checkpoint_tag: str | None
    fingerprint: Fingerprint
    resume: bool
    checkpointing: bool
