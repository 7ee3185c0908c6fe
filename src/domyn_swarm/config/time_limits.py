"""The types of time limits in configurations: one time, or a range of two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from domyn_swarm.config.section import Section
from domyn_swarm.config.units import time_limit_s


def _time_limit(value: str) -> str:
    time_limit_s(value)
    return value


TimeLimit = Annotated[str, AfterValidator(_time_limit)]


class TimeRange(Section):
    """A range of time limits, from which Slurm chooses one when it starts the job."""

    min: TimeLimit = Field(description="shortest time limit with which it may start")
    max: TimeLimit = Field(description="longest time limit that it may be given")

    @field_validator("min")
    @classmethod
    def _is_limited(cls, value: str) -> str:
        if time_limit_s(value) == float("inf"):
            raise ValueError("0 means no limit: write the shortest time, such as 1:00:00")
        return value

    @field_validator("max")
    @classmethod
    def _not_less_than_min(cls, value: str, info: ValidationInfo) -> str:
        least = info.data.get("min")
        if least is not None and time_limit_s(value) <= time_limit_s(least):
            raise ValueError(f"{value} is not longer than min ({least})")
        return value


TimeLimits = Annotated[
    Annotated[TimeLimit, Tag("time")] | Annotated[TimeRange, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, Mapping | TimeRange) else "time"),
]
