"""Serialises a request to JSON, and says which of its numbers JSON has no form for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from domyn_swarm.batch.column_values import json_of

_encoder = msgspec.json.Encoder(enc_hook=json_of)


def request_json(body: Mapping[str, Any]) -> bytes:
    """The JSON of a request, with numbers as they were written.

    Raises:
        ValueError: a number in it is infinite or not a number. The encoder would write null, and
            the server take that for something else. Says where it is.
        TypeError: a value in it has no JSON form.
    """
    encoded = _encoder.encode(body)
    if b"null" in encoded and (place := not_finite(body)) is not None:
        raise ValueError(f"{place} of the request is no finite number, and JSON has no others")
    return encoded


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
