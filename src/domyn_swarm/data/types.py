"""Which Arrow types are the same to users, whatever library they went through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from domyn_swarm.errors import InvalidInput


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without what only says how values lie in memory: the width of offsets and indices.

    Two columns whose plain types are equal hold the same kinds of values.
    """
    for is_it, made in _PLAIN.items():
        if is_it(kind):
            return made(kind)
    return kind


def _plain_dictionary(kind: pa.DictionaryType) -> pa.DataType:
    return pa.dictionary(pa.int32(), plain_type(kind.value_type), kind.ordered)


def _plain_list(kind: pa.ListType) -> pa.DataType:
    return pa.list_(plain_type(kind.value_type))


_PLAIN: dict[Callable[[pa.DataType], bool], Callable[[Any], pa.DataType]] = {
    pa.types.is_large_string: lambda _: pa.string(),
    pa.types.is_string_view: lambda _: pa.string(),
    pa.types.is_large_binary: lambda _: pa.binary(),
    pa.types.is_binary_view: lambda _: pa.binary(),
    pa.types.is_dictionary: _plain_dictionary,
    pa.types.is_map: lambda kind: pa.map_(plain_type(kind.key_type), plain_type(kind.item_type)),
    pa.types.is_fixed_size_list: lambda kind: pa.list_(plain_type(kind.value_type), kind.list_size),
    pa.types.is_list: _plain_list,
    pa.types.is_large_list: _plain_list,
    pa.types.is_list_view: _plain_list,
    pa.types.is_large_list_view: _plain_list,
    pa.types.is_struct: lambda kind: pa.struct(
        [(field.name, plain_type(field.type)) for field in kind]
    ),
}


def holds(kind: pa.DataType, refused: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type or one inside it is refused."""
    inside = [kind.field(at).type for at in range(kind.num_fields)]
    if pa.types.is_dictionary(kind):
        inside.append(kind.value_type)
    return refused(kind) or any(holds(one, refused) for one in inside)


def refuse_types(schema: pa.Schema, refused: Callable[[pa.DataType], bool], library: str) -> None:
    """Refuse columns that a library would change.

    Raises:
        InvalidInput: names the column, its type and what to do.
    """
    for field in schema:
        if holds(field.type, refused):
            raise InvalidInput(
                f"The column {field.name!r} ({field.type}) has no type of its own in {library}.",
                hint="Cast it first, or use --data-backend arrow.",
            )
