"""`SwarmJob`: what a user writes, one item in, one value out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from reprlib import Repr
from typing import Any, ClassVar, Self, Unpack, overload

from typing_extensions import override

from domyn_swarm.batch.input.opening import LineFiles
from domyn_swarm.batch.output.output_schema import Declared, OutputSchema, type_name
from domyn_swarm.batch.run.runner import Encode
from domyn_swarm.errors import ConfigError, quantity
from domyn_swarm.jobs.keywords import CopyKeywords, OptionKeywords, RunKeywords, SettingKeywords
from domyn_swarm.jobs.naming import (
    BODY,
    OPTIONS,
    JobOptions,
    arguments_of,
    check_attributes,
    check_methods,
    check_parameters,
    check_transforms,
    constructor_of,
    job_options,
    kept_columns,
    kept_values,
    own_arguments,
)
from domyn_swarm.jobs.source_digest import source_digest
from domyn_swarm.model import ReplyVerdict
from domyn_swarm.net import parameters
from domyn_swarm.net.openai import OpenAIClient

_shown = Repr()
_shown.maxstring = _shown.maxother = 60


class SwarmJob:
    """One kind of request, applied to a dataset.

    Subclasses set `input_columns` and `output_schema` and write `transform_item`, or
    `transform_items` if several rows belong into one request. During a run `self.client` (with
    OpenAI's interface) and `self.model` are set, and `self.params` holds the constructor's
    remaining arguments: parameters for the requests, of those that an API knows. The options of
    every job (see `OptionKeywords`) can be passed to the constructor, or be set in the class.

    Raises:
        ConfigError: a class is defined with an attribute that looks like an option and is none.
    """

    input_columns: Sequence[str] = ("text",)
    """The columns of an item. One column: its value; several: a dict."""
    output_schema: Declared = ("result",)
    """The output columns: names, names with types, or a pydantic model."""
    output_cols: Sequence[str] = ()
    """Names for the columns of the schema, in their order; without a schema, all columns."""
    request_parameters: ClassVar[frozenset[str]] = parameters.ALL
    """The parameters that its requests can have, besides `extra_body`."""
    version: ClassVar[str | None] = None
    """Replaces the class's source in the job's identity: increase it when answers change."""
    rows_per_call: int = 1
    """The most items per call of `transform_items`."""
    as_request: ClassVar[bool] = False
    """Whether items become parts of a request: fractions of JSON keep their written form
    (`WrittenFloat`), and structs of Parquet and frames come without their nulls.
    """
    lines: ClassVar[LineFiles | None] = None
    """The form of the lines of `.jsonl` files; None: objects of the columns."""

    __signature__: ClassVar[inspect.Signature]
    """The arguments of the constructor, for `help` and for completion."""

    client: OpenAIClient
    model: str
    given: dict[str, Any]
    """The arguments of the constructor, from which a worker makes the same job again."""

    def __new__(cls, *nameless: Any, **given: Any) -> Self:
        """Record the constructor's arguments.

        Raises:
            ConfigError: an argument was passed without its name, so that it cannot be passed to a
                worker.
        """
        if nameless:
            raise ConfigError(
                f"{cls.__name__} takes arguments by name, not {_shown.repr(nameless[0])} alone.",
                hint=f"It takes {', '.join(cls.__signature__.parameters)}.",
            )
        job = super().__new__(cls)
        job.given = given
        return job

    @override
    def __init_subclass__(cls, **keywords: Any) -> None:
        """Refuse attributes that look like options and are none."""
        super().__init_subclass__(**keywords)
        check_attributes(cls, cls.__bases__)
        check_methods(cls)
        if isinstance(cls.input_columns, str):  # one name, not its letters
            cls.input_columns = (cls.input_columns,)
        cls.__signature__ = constructor_of(cls, OptionKeywords.__annotations__)

    def __init__(
        self,
        *,
        input_columns: Sequence[str] | str | None = None,
        output_schema: Declared | None = None,
        output_columns: Sequence[str] | str | None = None,
        output_cols: Sequence[str] | str | None = None,
        **given: Unpack[SettingKeywords],
    ) -> None:
        """Set other columns than the class's, options, and parameters for the requests.

        `output_columns` (or `output_cols`) renames the columns of the schema, in their order.

        Raises:
            ConfigError: an option is invalid, a parameter unknown, or the number of new names is
                not that of the columns.
        """
        columns = input_columns or self.input_columns
        self.input_columns = (columns,) if isinstance(columns, str) else tuple(columns)
        if output_schema is not None:
            self.output_schema = output_schema
        names = output_columns or output_cols or self.output_cols
        if names:
            self.output_schema = self._renamed((names,) if isinstance(names, str) else names)
        of_class = {name: getattr(self, name) for name in OPTIONS if hasattr(type(self), name)}
        settings: dict[str, Any] = {**given}
        chosen = {name: settings.pop(name) for name in OPTIONS & settings.keys()}
        self.options: JobOptions = job_options({**of_class, **chosen})
        self.params = settings
        kind = type(self)
        check_parameters(kind.__name__, settings, self.known_parameters() | arguments_of(kind))

    @overload
    def __call__(self, **changes: Unpack[CopyKeywords]) -> Self: ...
    @overload  # further names are arguments of a user's class
    def __call__(self, **changes: Any) -> Self: ...
    def __call__(self, **changes: Any) -> Self:
        """The same job with these set, in addition to its arguments."""
        return type(self)(**{**self.given, **changes})

    @override
    def __repr__(self) -> str:
        from domyn_swarm.batch.output.manifest import without_secrets

        shown = []
        for name, value in self.given.items():
            [hidden] = without_secrets({name: value}).values()
            shown.append(f"{name}={_shown.repr(hidden if '***' in str(hidden) else value)}")
        return f"{self.label}({', '.join(shown)})"

    async def transform_item(self, item: Any) -> Any:  # noqa: ANN401 - the user's
        """One answer. `item` is the input column's value, or a dict of several columns.

        Returns a dict by output column, one value, or a tuple in the order of the columns. An
        exception becomes the row's error.
        """
        raise NotImplementedError(f"{type(self).__name__} has no transform_item")

    async def transform_items(self, items: list[Any]) -> Sequence[Any]:
        """One answer per item, in order; by default `transform_item` for a single item.

        An answer that is an exception is that row's error.
        """
        if len(items) == 1:  # a comprehension would add a coroutine for each row
            return [await self.transform_item(items[0])]
        return [await self.transform_item(item) for item in items]

    def known_parameters(self) -> frozenset[str]:
        """The names that it accepts besides its arguments and options, as parameters of
        requests.
        """
        return self.request_parameters | {BODY, "model"}

    @property
    def is_greedy(self) -> bool:
        """Whether its parameters make decoding greedy, so that equal requests get equal answers."""
        if self.lines is not None:  # each line may set others
            return False
        return "temperature" not in self.known_parameters() or self.params.get("temperature") == 0

    def bind(self, client: OpenAIClient, model: str) -> None:
        """Give the job its endpoint, before the first row."""
        self.client = client
        self.model = model

    @property
    def label(self) -> str:
        """The job's name in its identity, wherever it was imported from."""
        return type(self).__name__

    def check(self) -> None:
        """Check the job itself, before anything is recorded or sent.

        Raises:
            ConfigError: it has no transform, or none that can be called, or a required argument is
                missing.
        """
        kind = type(self)
        if not hasattr(self, "options"):
            raise ConfigError(
                f"The __init__ of {kind.__name__} does not call that of SwarmJob.",
                hint="Write in it: super().__init__(**options)",
            )
        if kind.transform_item is SwarmJob.transform_item and (
            kind.transform_items is SwarmJob.transform_items
        ):
            older = "`transform` of earlier versions is not called. "
            raise ConfigError(
                f"The job {self.label} does nothing with its rows.",
                hint=f"{older if hasattr(kind, 'transform') else ''}"
                "Write: async def transform_item(self, item)",
            )
        check_transforms(kind)
        if not self.input_columns:
            raise ConfigError(
                f"The job {self.label} has no input columns, so that every row would be the same.",
                hint='Name them: input_columns = ["text"] in the class, or where the job is made.',
            )

    def check_columns(self, there: Sequence[str]) -> None:
        """Check that the input has the columns that the job's own texts name.

        Raises:
            InvalidInput: names a missing column, and similar ones.
        """

    def check_items(self, items: Sequence[Any]) -> None:
        """Check the first rows for a fault of the job that affects every row.

        Raises:
            ConfigError: no row can be sent, because of the job.
        """

    @property
    def sent_columns(self) -> Sequence[str]:
        """The input columns in the order in which requests contain them: rows with a common prefix
        in this order are sent one after the other.
        """
        return self.input_columns

    def remarks(self, verdicts: Mapping[ReplyVerdict, int]) -> list[str]:  # noqa: ARG002
        """Remarks for the user about the verdicts of rows, a sentence or two each.

        Args:
            verdicts: number of rows by verdict.
        """
        return []

    def schema(self) -> OutputSchema:
        """The output columns, including those that `keep` adds.

        Raises:
            ConfigError: they are not usable.
        """
        options = getattr(self, "options", JobOptions())
        return OutputSchema(self.output_schema, kept_columns(options.keep))

    def encoder(self) -> Encode:
        """Converts an answer to the output columns."""
        encode, keep = self.schema().encode, self.options.keep
        if not keep:
            return lambda value, _trace, _latency_s: encode(value)
        return lambda value, trace, latency_s: encode(value, kept_values(keep, trace, latency_s))

    def described(self) -> dict[str, Any]:
        """The part of the job that determines its answers: for the identity."""
        own = own_arguments(type(self)) - self.params.keys()
        arguments = {name: value for name, value in self.given.items() if name in own}
        return {
            "input_columns": list(self.input_columns),
            "output_schema": self.schema().described(),
            "params": self.params,
            **({"arguments": arguments} if arguments else {}),
            "source": source_digest(type(self), SwarmJob),
        }

    def run(
        self,
        data: Any,  # noqa: ANN401 - a frame or a path
        *,
        endpoint: str,
        model: str,
        api_key: str | None = None,
        **settings: Unpack[RunKeywords],
    ) -> Any:  # noqa: ANN401 - a frame
        """Send every row of a frame from this process; returns a frame of the same kind.

        Args:
            data: a pandas, polars, Arrow or Ray frame, or the path of files (which are returned as
                an Arrow table).
            endpoint: the URL of any OpenAI endpoint, with or without `/v1`.
            model: the model's name there.
            api_key: its key; else `DOMYN_SWARM_API_TOKEN` or `OPENAI_API_KEY` of the environment.
            **settings: of the run; see `RunKeywords`.

        Rows without an answer have an `_error`. The same call again sends only rows without a
        result.

        Raises:
            SwarmError: the job or the data is invalid (nothing was sent), or the run cannot
                continue (settled rows are kept).
            KeyboardInterrupt: it was interrupted; the message says what is kept.
        """
        from domyn_swarm.jobs.running import Endpoint, run, settings_of

        return run(self, data, Endpoint.at(endpoint, model, api_key), settings_of({**settings}))

    async def arun(
        self,
        data: Any,  # noqa: ANN401 - a frame or a path
        *,
        endpoint: str,
        model: str,
        api_key: str | None = None,
        **settings: Unpack[RunKeywords],
    ) -> Any:  # noqa: ANN401 - a frame
        """As `run`, for async code. When cancelled, it finishes the rows in flight and keeps all
        results.
        """
        from domyn_swarm.jobs.running import Endpoint, arun, settings_of

        where = Endpoint.at(endpoint, model, api_key)
        return await arun(self, data, where, settings_of({**settings}))

    def travelling(self) -> dict[str, Any]:
        """The constructor's arguments on a worker, as JSON.

        Raises:
            ConfigError: the output schema has no JSON form.
        """
        schema = self.given.get("output_schema")
        if schema is None or isinstance(schema, str | list | tuple):
            return self.given
        if isinstance(schema, type):
            module, name = schema.__module__, schema.__name__
            if module != "__main__" and getattr(sys.modules.get(module), name, None) is schema:
                return {**self.given, "output_schema": f"{module}:{name}"}
            raise ConfigError(
                f"The output schema {name} does not travel to a worker.",
                hint="Put it into a module, or into a job of your own: @job(output_schema=...), "
                "or a subclass with this output_schema.",
            )
        names = {name: type_name(kind) for name, kind in schema.items()}
        return {**self.given, "output_schema": names}

    def _renamed(self, names: Sequence[str]) -> Declared:
        """The output schema with other names for its columns."""
        schema, known = self.output_schema, self.schema()
        if schema == SwarmJob.output_schema:
            return tuple(names)
        if len(names) != len(known.answered):
            raise ConfigError(
                f"The job has {quantity(len(known.answered), 'output column')} "
                f"({', '.join(known.answered)}), but "
                f"{quantity(len(names), 'name was', 'names were')} given.",
                hint="Repeat --output-column once for each, in that order.",
            )
        if isinstance(schema, type):
            raise ConfigError(
                f"The columns of {schema.__name__} are its fields' names and cannot be renamed.",
                hint="Take out --output-column, or rename the fields.",
            )
        if isinstance(schema, dict):
            return dict(zip(names, schema.values(), strict=True))
        return tuple(names)


SwarmJob.__signature__ = constructor_of(SwarmJob, OptionKeywords.__annotations__)
