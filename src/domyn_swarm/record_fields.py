"""Annotations of a record's fields: descriptions, and checks of their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Meta

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema


class After(NamedTuple):
    """Annotates a field's type: `check` receives the converted value and returns the field's value,
    or raises a ValueError.

    It applies when a record is validated, not when one is constructed or read from its own JSON.
    """

    check: Callable[[Any], Any]

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """For pydantic."""
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(self.check, handler(source))


class Before(NamedTuple):
    """As `After`, but `check` receives the input before its type is checked. `accepts` is the JSON
    Schema of valid input if that is more than the type allows.
    """

    check: Callable[[Any], Any]
    accepts: Mapping[str, Any] | None = None

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """For pydantic."""
        from pydantic_core.core_schema import no_info_before_validator_function

        return no_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """For pydantic."""
        if self.accepts is None or handler.mode != "validation":
            return handler(schema)
        return dict(self.accepts)


def about(
    text: str, *, flag: str = "", metavar: str | None = None, flag_help: str | None = None
) -> Meta:
    """A field's description, for its type's `Annotated`.

    Args:
        text: the description.
        flag: the field's flag if it is not named after the field; `--no-…` sets the field to False.
        metavar: the placeholder for the flag's value in `--help`.
        flag_help: the flag's description in `--help`, if it is not `text`.
    """
    extra = {"flag": flag, "metavar": metavar, "flag_help": flag_help or text}
    return Meta(description=text, extra=extra)
