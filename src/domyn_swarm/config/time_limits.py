"""Times as users write them: Slurm's notation, and 3d, 12h, 90m."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from domyn_swarm.config.section import Section

_TIME_LIMIT = re.compile(
    r"(?:(?P<days>\d+)-)(?P<h>\d+)(?::(?P<m>\d{1,2}))?(?::(?P<s>\d{1,2}))?"
    r"|(?:(?P<hours>\d+):(?=\d+:))?(?P<minutes>\d+)(?::(?P<seconds>\d{1,2}))?"
)
_UNITS = {"h": "hours", "m": "minutes", "minutes": "minutes", "s": "seconds", "seconds": "seconds"}
_WITHIN = (  # (unit, next larger unit, largest value if the larger unit is given)
    *(("h", "days", 23), ("m", "h", 59), ("s", "m", 59)),
    *(("minutes", "hours", 59), ("seconds", "minutes", 59)),
)


def time_limit_s(value: str) -> float:
    """The seconds of a time in Slurm's notation; 0 means no limit: infinity.

    Raises:
        ValueError: `value` is not such a time.
    """
    match = _TIME_LIMIT.fullmatch(value)
    if match is None:
        raise ValueError("write a time like 36:00:00, 90 (minutes) or 2-12:00:00 (days)")
    part = {name: int(digits or 0) for name, digits in match.groupdict().items()}
    for name, larger, most in _WITHIN:
        if part[name] > most and match[larger] is not None:
            raise ValueError(f"{value!r} has {part[name]} {_UNITS[name]}; at most {most} are valid")
    hours = part["days"] * 24 + part["h"] + part["hours"]
    minutes = hours * 60 + part["m"] + part["minutes"]
    return (minutes * 60 + part["s"] + part["seconds"]) or float("inf")


_UNIT_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0}


def duration_s(value: str) -> float:
    """The seconds of `3d`, `12h`, `90m`, or of a time in Slurm's notation; 0 means no limit.

    Raises:
        ValueError: `value` is not such a time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", value)
    if match is not None:
        return float(match[1]) * _UNIT_S[match[2]] or float("inf")
    try:
        return time_limit_s(value)
    except ValueError:
        raise ValueError("write a time like 3d, 12h, 90m or 2-12:00:00") from None


def _time_limit(value: str) -> str:
    time_limit_s(value)
    return value


TimeLimit = Annotated[str, AfterValidator(_time_limit)]


class TimeRange(Section):
    """A time limit between two, of which Slurm chooses one as it starts the job."""

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


def time_limits_s(value: str | Mapping[str, str]) -> tuple[float, float]:
    """The shortest and the longest seconds of a time limit, as a file has it; see `time_limit_s`.

    Raises:
        ValueError: `value` is no time limit.
    """
    if isinstance(value, str):
        return time_limit_s(value), time_limit_s(value)
    return time_limit_s(value["min"]), time_limit_s(value["max"])
