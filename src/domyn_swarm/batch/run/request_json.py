"""Serialises a request to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from domyn_swarm.batch.column_values import json_of
from domyn_swarm.net.json_numbers import not_finite

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
