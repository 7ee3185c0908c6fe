"""Parses times and sizes of configurations, job files and flags: Slurm's notation."""

from __future__ import annotations

import re
from collections.abc import Mapping

_TIME_LIMIT = re.compile(
    r"(?:(?P<days>\d+)-)(?P<h>\d+)(?::(?P<m>\d{1,2}))?(?::(?P<s>\d{1,2}))?"
    r"|(?:(?P<hours>\d+):(?=\d+:))?(?P<minutes>\d+)(?::(?P<seconds>\d{1,2}))?"
)
_UNITS = {"h": "hours", "m": "minutes", "minutes": "minutes", "s": "seconds", "seconds": "seconds"}
_WITHIN = (  # (unit, next larger unit, largest value if the larger unit is given)
    *(("h", "days", 23), ("m", "h", 59), ("s", "m", 59)),
    *(("minutes", "hours", 59), ("seconds", "minutes", 59)),
)
_MEMORY = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[KMGT]?)B?", re.IGNORECASE)
_GB = {"K": 1 / 1024**2, "M": 1 / 1024, "": 1 / 1024, "G": 1.0, "T": 1024.0}


def time_limit_s(value: str) -> float:
    """The seconds of a time in Slurm's notation; `0` means no limit and gives infinity.

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
    """The seconds of `3d`, `12h`, `90m` or a time in Slurm's notation; 0 means no limit: infinity.

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


def time_limits_s(value: str | Mapping[str, str]) -> tuple[float, float]:
    """The shortest and the longest time of a time limit, in seconds: of one time, both are equal.

    Raises:
        ValueError: `value` is not a time limit.
    """
    if isinstance(value, str):
        return time_limit_s(value), time_limit_s(value)
    return time_limit_s(value["min"]), time_limit_s(value["max"])


def memory_gb(value: str) -> float:
    """The gigabytes of a size in Slurm's notation: `8G`, `500M`; a bare number is megabytes.

    Raises:
        ValueError: `value` is not such a size, or is 0.
    """
    match = _MEMORY.fullmatch(value)
    if match is None or not float(match["number"]):
        raise ValueError("write a size like 8G or 500M")
    return float(match["number"]) * _GB[match["unit"].upper()]
