"""The names that a job is given: arguments, parameters of requests, attributes of its class. What
nobody knows is refused, with the name that may be meant.
"""

from __future__ import annotations

import difflib
import dis
import inspect
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.options import OPTIONS
from domyn_swarm.net import parameters

BODY = "extra_body"
"""The parameter that holds what only some server knows."""
_OF_EVERY_JOB = OPTIONS | {"input_columns", "output_schema", "output_columns", "output_cols"}
_OF_CLASS = _OF_EVERY_JOB | {"version", "rows_per_call", "lines"}
"""Attributes of a job's class that decide something."""
_ALIKE = 0.85  # names that are more alike than this are one name and a slip,
_SHORT = 6  # but short ones are alike by chance
_OUR_JOBS = "domyn_swarm.jobs."
_OLDER = {"input_column_name": "input_columns"}
"""Attributes of classes in earlier versions that nothing reads any more."""


def arguments_of(kind: type) -> frozenset[str]:
    """What the constructors of a job's class, and of those above it, take by name."""
    return frozenset[str]().union(*map(_named, kind.__mro__))


def _named(kind: type) -> frozenset[str]:
    """What a class's own constructor takes by name."""
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
    """What the constructors of a user's own classes take by name, and ours do not."""
    own = [one for one in kind.__mro__ if not _is_ours(one)]
    ours = [one for one in kind.__mro__ if _is_ours(one)]
    taken = frozenset[str]().union(*(_named(one) for one in own))
    return taken - _OF_EVERY_JOB - frozenset[str]().union(*(_named(one) for one in ours))


def check_parameters(job: str, given: Iterable[str], known: frozenset[str]) -> None:
    """Refuse parameters that nobody knows.

    Args:
        job: its name.
        given: the names of what goes to its requests.
        known: those that are known.

    Raises:
        ConfigError: names one, and what may be meant.
    """
    for name in given:
        if name not in known:
            raise ConfigError(
                f"The job {job} has no parameter {name!r}.", hint=_instead(name, known)
            )


def _instead(name: str, known: frozenset[str]) -> str:
    if name in parameters.ASKED:
        return "The job makes that part of a request itself, of its rows."
    if close := parameters.meant(name, known | _OF_EVERY_JOB):
        return f"Did you mean {close!r}?"
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


def _check_kwargs(kind: type) -> None:
    """Refuse code for an earlier version, where parameters of requests were `self.kwargs`.

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
    """Refuse parameters of requests that are attributes of a class in which no code could read
    them.

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
    """The public attributes that a class itself defines and that are plain values."""
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("_")
        and not isinstance(value, property | staticmethod | classmethod | type)
        and not callable(value)
    ]
