"""`SwarmJob`: what a user writes, one item in, one value out."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from domyn_swarm.batch.schema import OutputSchema
from domyn_swarm.errors import ConfigError
from domyn_swarm.net.openai import OpenAIClient


class SwarmJob:
    """A dataset's worth of one kind of request.

    Subclasses set `input_columns` and `output_schema` and write `transform_item`, or
    `transform_items` where several rows belong into one request. While a run is on, `self.client`
    (the shape of OpenAI's) and `self.model` are there, and `self.params` holds what else was
    given to the constructor: parameters for the requests.
    """

    input_columns: Sequence[str] = ("text",)
    output_schema: Sequence[str] | Mapping[str, Any] = ("result",)
    version: ClassVar[str | None] = None
    """Stands for the source in the job's identity when it is set: raise it when answers change."""
    rows_per_call: int = 1
    """How many items `transform_items` is given at once, at most."""

    client: OpenAIClient
    model: str
    given: dict[str, Any]
    """What the constructor was called with: how a worker makes the same job again."""

    def __new__(cls, **given: Any) -> Self:
        """Remember what the job is made of."""
        job = super().__new__(cls)
        job.given = given
        return job

    def __init__(
        self,
        *,
        input_columns: Sequence[str] | None = None,
        output_columns: Sequence[str] | None = None,
        **params: Any,
    ) -> None:
        """Take other column names than the class's, and parameters for the requests.

        Raises:
            ConfigError: the output columns are not as many as the job has.
        """
        if input_columns:
            self.input_columns = tuple(input_columns)
        if output_columns:
            self.output_schema = _renamed(self.output_schema, output_columns)
        self.params = params

    async def transform_item(self, item: Any) -> Any:  # noqa: ANN401 - the user's
        """One answer. `item` is the input column's value, or a dict of several columns.

        Returns a dict by output column, one value, or a tuple in the order of the columns. What
        it raises becomes the row's error.
        """
        raise NotImplementedError(f"{type(self).__name__} has no transform_item")

    async def transform_items(self, items: list[Any]) -> Sequence[Any]:
        """As many answers as items, in order; by default `transform_item` for the one item."""
        return [await self.transform_item(item) for item in items]

    def bind(self, client: OpenAIClient, model: str) -> None:
        """Give the job its endpoint, before the first row."""
        self.client = client
        self.model = model

    def schema(self) -> OutputSchema:
        """The output columns.

        Raises:
            ConfigError: they are not usable.
        """
        return OutputSchema(self.output_schema)

    def described(self) -> dict[str, Any]:
        """What of the job decides its answers: for the identity."""
        return {
            "input_columns": list(self.input_columns),
            "output_schema": self.schema().described(),
            "params": self.params,
            "source": self.version or source_digest(type(self)),
        }


def _renamed(
    schema: Sequence[str] | Mapping[str, Any], names: Sequence[str]
) -> Sequence[str] | Mapping[str, Any]:
    if len(names) != len(schema):
        raise ConfigError(
            f"The job has {len(schema)} output columns ({', '.join(schema)}), "
            f"but {len(names)} names were given.",
            hint="Repeat --output-column once for each, in that order.",
        )
    if isinstance(schema, Mapping):
        return dict(zip(names, schema.values(), strict=True))
    return tuple(names)


def source_digest(cls: type) -> str:
    """A digest of the syntax trees of a class and its bases up to `SwarmJob`.

    Comments and layout do not count; code that the class imports is not covered.
    """
    trees = []
    for one in cls.__mro__:
        if one in (SwarmJob, object):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(one))
        except (OSError, TypeError):
            source = f"{one.__module__}:{one.__qualname__}"  # no source: the name must do
            trees.append(source)
            continue
        trees.append(ast.dump(ast.parse(source)))
    return hashlib.blake2b("\n".join(trees).encode(), digest_size=12).hexdigest()
