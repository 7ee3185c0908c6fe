"""Numbers that JSON has no form for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def not_finite(value: object, place: str = "") -> str | None:
    """Where in a value a number is infinite or not a number, as `messages[0].content`, below
    `place`; None: nowhere.
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    inside: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        inside = ((f"{place}.{name}" if place else str(name), one) for name, one in value.items())
    elif isinstance(value, list | tuple):
        inside = ((f"{place}[{at}]", one) for at, one in enumerate(value))
    found = (not_finite(one, inner) for inner, one in inside)
    return next((one for one in found if one is not None), None)
