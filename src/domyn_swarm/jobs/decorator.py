"""`@job`: an async function as a job."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Unpack, get_type_hints, overload

from typing_extensions import override

from domyn_swarm.batch.output.output_schema import Declared
from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.jobs.keywords import OptionKeywords
from domyn_swarm.jobs.naming import constructor_of
from domyn_swarm.jobs.source_digest import function_digest

_BOUND = ("client", "model")
"""Arguments that a run passes, if the function has them."""

Function = Callable[..., Awaitable[Any]]


class FunctionJob(SwarmJob):
    """A job whose `transform_item` is a function of `item`, and of `client` and `model` if it names
    them.

    Its other keyword arguments are the job's parameters; further parameters of the API that it
    accepts as `**params` are up to the function.
    """

    function: Function
    version_given: str | None = None

    @override
    def __init_subclass__(cls, **keywords: Any) -> None:
        """Show the function's parameters in `help` and completion."""
        super().__init_subclass__(**keywords)
        cls.__signature__ = constructor_of(
            cls,
            OptionKeywords.__annotations__,
            _parameters(cls.function),
            open_ended=_is_open_ended(cls.function),
        )

    def __init__(self, **given: Any) -> None:
        """Options and parameters, as `SwarmJob`.

        Raises:
            ConfigError: the function has no such parameter, or a value is not of its type.
        """
        super().__init__(**given)
        self.params = _checked(self.function, self.params)
        names = inspect.signature(self.function).parameters
        self._bound = [name for name in _BOUND if name in names]

    @property
    @override
    def label(self) -> str:
        """The function's name."""
        return self.function.__name__

    @override
    def described(self) -> dict[str, Any]:
        source = self.version_given or function_digest(self.function)
        return {**super().described(), "source": source}

    @override
    def known_parameters(self) -> frozenset[str]:
        """The parameters of the function; if it takes `**params`, also those
        of the API.
        """
        own = frozenset(_parameters(self.function))
        return own | super().known_parameters() if _is_open_ended(self.function) else own

    @override
    def check(self) -> None:
        """Also refuses a job without a parameter that the function requires."""
        super().check()
        missing = [
            name
            for name, one in _parameters(self.function).items()
            if one.default is one.empty and name not in self.params
        ]
        if missing:
            raise ConfigError(
                f"The job {self.label} needs {', '.join(missing)}.",
                hint=f"Give it as {self.label}({missing[0]}=...), or with --job-kwargs.",
            )

    @override
    async def transform_item(self, item: Any) -> Any:
        """The function's answer to the item."""
        bound = {name: getattr(self, name) for name in self._bound}
        return await self.function(item, **bound, **self.params)


def _parameters(function: Function) -> dict[str, inspect.Parameter]:
    """The arguments of the function that a job's caller passes, by name."""
    known = list(inspect.signature(function).parameters.values())[1:]
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {one.name: one for one in known if one.name not in _BOUND and one.kind in kinds}


def _is_open_ended(function: Function) -> bool:
    """Whether it takes `**params`."""
    taken = inspect.signature(function).parameters.values()
    return any(one.kind is one.VAR_KEYWORD for one in taken)


def _checked(function: Function, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments, converted by the function's annotations."""
    hints = get_type_hints(function) if given.keys() & _parameters(function).keys() else {}
    name = function.__qualname__
    return {one: _typed(name, one, value, hints.get(one)) for one, value in given.items()}


def _typed(job: str, name: str, value: Any, kind: Any) -> Any:  # noqa: ANN401 - the user's
    if kind is None:
        return value
    from pydantic import TypeAdapter, ValidationError  # here: most jobs are no functions

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise ConfigError(f"The job {job}: {name} is {value!r}: {reason}.") from error


@overload
def job(function: Function, /) -> FunctionJob: ...
@overload
def job(
    *,
    output_schema: Declared = ...,
    input_columns: Sequence[str] | str = ...,
    version: str | None = ...,
    **options: Unpack[OptionKeywords],
) -> Callable[[Function], FunctionJob]: ...
@overload  # further names are parameters of the function, which a type cannot express
def job(
    *,
    output_schema: Declared = ...,
    input_columns: Sequence[str] | str = ...,
    version: str | None = ...,
    **parameters: Any,
) -> Callable[[Function], FunctionJob]: ...
def job(
    function: Function | None = None,
    /,
    *,
    output_schema: Declared = ("result",),
    input_columns: Sequence[str] | str = ("text",),
    version: str | None = None,
    **options: Any,
) -> FunctionJob | Callable[[Function], FunctionJob]:
    """Make a job of `async def f(item, client, model, *, …) -> answer`.

    The result is a job; called with options or parameters it is the same job with those set:
    `summarise(input_columns=["story"], temperature=0.2)`.

    Args:
        function: answers one item; it receives `client` and `model` if it names them.
        output_schema: names, names with types, or a pydantic model.
        input_columns: the columns of an item. One column: its value; several: a dict.
        version: replaces the function's source in the job's identity.
        **options: any of `OptionKeywords`, and defaults of the function's parameters.

    Raises:
        ConfigError: it is not such a function, or an option is invalid.
    """

    def make(found: Function) -> FunctionJob:
        _check_function(found)
        columns = (input_columns,) if isinstance(input_columns, str) else tuple(input_columns)
        body: dict[str, Any] = {
            "__module__": found.__module__,
            "__qualname__": found.__qualname__,
            "__doc__": found.__doc__,
            "function": staticmethod(found),
            "version_given": version,
            "input_columns": columns,
            "output_schema": output_schema,
        }
        kind = type(found.__name__, (FunctionJob,), body)
        made: FunctionJob = kind(**options)
        made.schema()
        return made

    return make if function is None else make(function)


def _check_function(function: Function) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if not inspect.iscoroutinefunction(function):
        raise ConfigError(
            f"@job needs an async function, and {name} is none.",
            hint=f"Write: async def {name}(item, client, model, **params)",
        )
    if not inspect.signature(function).parameters:
        raise ConfigError(f"The job {name} takes no item.", hint=f"Write: async def {name}(item)")
