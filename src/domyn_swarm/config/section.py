"""What every section of the configuration shares."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        hide_input_in_errors=True,  # an input may be a secret
    )


class WrongNames(ValueError):
    """Some keys of a mapping are invalid. Each is reported at its own line."""

    def __init__(self, names: Iterable[str], why: str) -> None:
        self.names = sorted(names)
        self.why = why
        super().__init__(f"{', '.join(self.names)} {why}")
