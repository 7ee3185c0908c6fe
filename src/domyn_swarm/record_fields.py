"""What may stand beside the type of a record's field: words for it, and checks of what is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Meta

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema


class After(NamedTuple):
    """Beside a field's type: what is given is what this makes of it, or it raises a ValueError.

    It counts where a record is validated, not where one is made or read from its own JSON.
    """

    check: Callable[[Any], Any]

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """For pydantic."""
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(self.check, handler(source))


class Before(NamedTuple):
    """As `After`, but what is given goes through `check` before its type is looked at. `accepts`
    is the JSON Schema of what may be given, where that is more than the type says.
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
    """Words for what a field is about, to stand beside its type in `Annotated`.

    Args:
        text: what the field is about.
        flag: how its flag is spelled where that is not the field's name; `--no-…` makes it False.
        metavar: what stands for the flag's value in `--help`.
        flag_help: the words of `--help`, where they are others.
    """
    extra = {"flag": flag, "metavar": metavar, "flag_help": flag_help or text}
    return Meta(description=text, extra=extra)
