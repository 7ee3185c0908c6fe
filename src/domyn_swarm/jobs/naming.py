"""The names that a job accepts: options of every job, arguments, parameters of requests, attributes
of its class. Unknown names are refused, with the name that may be meant.
"""

from __future__ import annotations

import difflib
import dis
import inspect
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from domyn_swarm.batch.outcomes.row_outcomes import RowTrace
from domyn_swarm.batch.outcomes.verdicts import verdict_of
from domyn_swarm.errors import ConfigError, Mistake
from domyn_swarm.jobs.run_options import KeepingOptions, given_options
from domyn_swarm.net import parameters
from domyn_swarm.record import Before

Kept = Literal["finish_reason", "verdict", "usage", "latency"]


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class JobOptions(KeepingOptions):
    """A job's own options; None: those of the caller, or the default."""

    name: str | None = None
    keep: Annotated[tuple[Kept, ...], Before(_several)] = ()


OPTIONS = frozenset(JobOptions.field_names())


def job_options(given: dict[str, Any]) -> JobOptions:
    """The options, validated.

    Raises:
        ConfigError: names the option, its value, and the possible values.
    """
    return given_options(JobOptions, given, "The job's option")


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
    """The values of those columns. `finish_reason` is that of the last reply's first choice."""
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


BODY = "extra_body"
"""The parameter for fields that only some servers know."""
_OF_EVERY_JOB = OPTIONS | {"input_columns", "output_schema", "output_columns", "output_cols"}
_OF_CLASS = _OF_EVERY_JOB | {"version", "rows_per_call", "lines"}
"""Attributes of a job's class that affect its run."""
_ALIKE = 0.85  # more similar names count as one name with a typing error,
_SHORT = 6  # but short names are similar by chance
_OUR_JOBS = "domyn_swarm.jobs."
_TRANSFORMS = ("transform_item", "transform_items")
_OLDER = {"input_column_name": "input_columns"}
"""Attributes of classes in earlier versions that have no effect any more."""


def arguments_of(kind: type) -> frozenset[str]:
    """The named arguments of the constructors of a job's class and its bases."""
    return frozenset[str]().union(*map(_named, kind.__mro__))


def _named(kind: type) -> frozenset[str]:
    """The named arguments of a class's own constructor."""
    if "__init__" not in vars(kind):
        return frozenset()
    arguments = inspect.signature(vars(kind)["__init__"]).parameters.values()
    return frozenset(
        one.name
        for one in arguments
        if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD) and one.name != "self"
    )


def _is_ours(kind: type) -> bool:
    return kind is object or kind.__module__.startswith(_OUR_JOBS)


def own_arguments(kind: type) -> frozenset[str]:
    """The named arguments of the constructors of a user's own classes that ours lack."""
    own = [one for one in kind.__mro__ if not _is_ours(one)]
    ours = [one for one in kind.__mro__ if _is_ours(one)]
    taken = frozenset[str]().union(*(_named(one) for one in own))
    return taken - _OF_EVERY_JOB - frozenset[str]().union(*(_named(one) for one in ours))


def check_parameters(job: str, given: Iterable[str], known: frozenset[str]) -> None:
    """Refuse unknown parameters.

    Args:
        job: its name.
        given: the names of the parameters of its requests.
        known: the possible names.

    Raises:
        ConfigError: names one, and what may be meant; its mistakes are all of them.
    """
    unknown = {name: _instead(name, known) for name in given if name not in known}
    for name, hint in unknown.items():
        raise ConfigError(
            f"The job {job} has no parameter {name!r}.",
            hint=hint,
            mistakes=[
                Mistake("", one, f"the job {job} has no such parameter. {instead}")
                for one, instead in unknown.items()
            ],
        )


def _instead(name: str, known: frozenset[str]) -> str:
    if name in parameters.ASKED:
        return "The job makes that part of a request itself, of its rows."
    if close := parameters.meant(name, known | _OF_EVERY_JOB):
        return f"Did you mean {close!r}?"
    from domyn_swarm.jobs.run_options import RunOptions  # here: only a mistake needs it

    if name in RunOptions.field_names():
        return (
            f"{name} is a setting of the run, not a parameter: --{name.replace('_', '-')} of "
            f"`job submit`, {name} in a job's file (not under parameters), submit_job(…, {name}=…)."
        )
    if BODY not in known:
        return f"It has: {', '.join(sorted(known)) or 'none'}."
    return (
        f"What only your server knows goes into extra_body: {{'{BODY}': {{'{name}': …}}}}. "
        "What the job itself needs is an argument of its function or of its class's __init__."
    )


def check_attributes(kind: type, bases: Iterable[type]) -> None:
    """Refuse a class's attribute that looks like an option and is none.

    Raises:
        ConfigError: names it, and what may be meant.
    """
    ours = {one for base in bases for one in base.__mro__ if _is_ours(one)}
    arguments = frozenset[str]().union(*map(arguments_of, ours)) - _OF_CLASS
    options = [name for name in sorted(_OF_CLASS | arguments) if len(name) > _SHORT]
    _check_kwargs(kind)
    for name in _own_values(kind):
        if name in _OLDER:
            raise ConfigError(
                f"{kind.__name__}.{name} is of an earlier version, and would have no effect.",
                hint=f"It is called {_OLDER[name]} now.",
            )
        if name in arguments:
            if "__init__" not in vars(kind):
                raise ConfigError(
                    f"{kind.__name__}.{name} would have no effect: {name} is an argument.",
                    hint=f"Give it where the job is made: {kind.__name__}({name}=...).",
                )
        elif name not in _OF_CLASS and (
            close := difflib.get_close_matches(name, options, 1, _ALIKE)
        ):
            raise ConfigError(
                f"{kind.__name__}.{name} is no option of jobs, and looks like one.",
                hint=f"Did you mean {close[0]!r}? If not, call it something else.",
            )


def check_methods(kind: type) -> None:
    """Refuse a method whose name is similar to one that runs call, and is not called.

    Raises:
        ConfigError: names it, and what may be meant.
    """
    if not {*_TRANSFORMS}.isdisjoint(vars(kind)):
        return
    for name, value in vars(kind).items():
        close = difflib.get_close_matches(name, _TRANSFORMS, 1, _ALIKE)
        if close and inspect.isfunction(value):
            raise ConfigError(
                f"{kind.__name__}.{name} would never be called, and looks like {close[0]}.",
                hint=f"Call it {close[0]}, or if it is something else, by another name.",
            )


def check_transforms(kind: type) -> None:
    """Refuse a transform that no run could call.

    Raises:
        ConfigError: it is not asynchronous, or takes no item.
    """
    for name in _TRANSFORMS:
        argument = name.removeprefix("transform_")
        taken = f"async def {name}(self, {argument})"
        method = inspect.getattr_static(kind, name)
        if not inspect.isfunction(method):  # a static one, a partial, …: what it takes is its own
            continue
        function = inspect.unwrap(method)
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(
                f"{kind.__name__}.{name} is not asynchronous.", hint=f"Write: {taken}"
            )
        try:
            inspect.signature(function).bind(None, None)
        except TypeError as error:
            raise ConfigError(
                f"{kind.__name__}.{name} cannot be called with one {argument}: {error}.",
                hint=f"Write: {taken}",
            ) from error


def constructor_of(
    kind: type,
    options: Mapping[str, Any],
    first: Mapping[str, inspect.Parameter] | None = None,
    *,
    open_ended: bool = True,
) -> inspect.Signature:
    """The named arguments of a job's class: its own, those of its bases, the options of every job.

    Args:
        kind: the class.
        options: of every job, with their types.
        first: further ones, before all others.
        open_ended: whether parameters of requests are accepted, too.
    """
    found, passed_on = dict(first or {}), True
    for one in kind.__mro__:
        if not passed_on or "__init__" not in vars(one) or one is object:
            continue
        arguments = list(inspect.signature(vars(one)["__init__"]).parameters.values())[1:]
        for argument in arguments:
            if argument.kind in (argument.KEYWORD_ONLY, argument.POSITIONAL_OR_KEYWORD):
                found.setdefault(argument.name, argument)
        passed_on = any(argument.kind is argument.VAR_KEYWORD for argument in arguments)
    if passed_on:
        for name, annotation in options.items():
            type_of = getattr(annotation, "__forward_arg__", annotation)
            kind_of = inspect.Parameter.KEYWORD_ONLY
            option = inspect.Parameter(name, kind_of, default=None, annotation=type_of)
            found.setdefault(name, option)
    named = [one.replace(kind=one.KEYWORD_ONLY) for one in found.values()]
    rest = inspect.Parameter("parameters", inspect.Parameter.VAR_KEYWORD)
    return inspect.Signature([*named, *([rest] if passed_on and open_ended else [])])


def _check_kwargs(kind: type) -> None:
    """Refuse code for an earlier version, in which parameters of requests were `self.kwargs`.

    Raises:
        ConfigError: a method reads it, and no class defines it.
    """
    functions = [value for value in vars(kind).values() if inspect.isfunction(value)]
    written = {name for one in functions for how, name in _of_self(one) if how == "STORE_ATTR"}
    if hasattr(kind, "kwargs") or "kwargs" in written:
        return
    for one in functions:
        if ("LOAD_ATTR", "kwargs") in _of_self(one):
            raise ConfigError(
                f"{kind.__name__}.{one.__name__} reads self.kwargs, which jobs do not have.",
                hint="It was so in earlier versions: parameters of requests are self.params now.",
            )


def _of_self(function: Any) -> set[tuple[str, str]]:  # noqa: ANN401 - a function
    """How a method's code uses attributes of `self`: (`LOAD_ATTR` or `STORE_ATTR`, name)."""
    code = list(dis.get_instructions(function))
    found = set()
    for before, one in pairwise(code):
        loaded = before.argval if isinstance(before.argval, tuple) else (before.argval,)
        if before.opname.startswith("LOAD_FAST") and loaded[-1] == "self":
            found.add((one.opname, str(one.argval)))
    return found


def check_class_parameters(kind: type, api: frozenset[str], given: Mapping[str, Any]) -> None:
    """Refuse parameters of requests that are attributes of a class whose code cannot read them.

    Raises:
        ConfigError: names one.
    """
    own = [one for one in kind.__mro__ if not _is_ours(one)]
    if any(inspect.isfunction(value) for one in own for value in vars(one).values()):
        return
    for one in own:
        for name in _own_values(one):
            if name in api and name not in given:
                raise ConfigError(
                    f"{one.__name__}.{name} would have no effect: it is a parameter of requests.",
                    hint=f"Give it where the job is made: {kind.__name__}({name}=...).",
                )


def _own_values(kind: type) -> list[str]:
    """The public attributes with plain values that a class itself defines."""
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("_")
        and not isinstance(value, property | staticmethod | classmethod | type)
        and not callable(value)
    ]
