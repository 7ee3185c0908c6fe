"""`engine_options` of the simulator: bounds stand with the fields.

The engine validates what a user wrote by them (`parse_options`); the server takes what the engine
hands on as it is, without the library that validates.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True)
class ErrorRule:
    """What happens to requests whose prompt matches. The first rule that applies is taken."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    match: str = ""  # regular expression, searched in the prompt
    # per distinct prompt; None: always
    times: int | None = field(default=None, metadata={"ge": 1})
    # share of the prompts, always the same ones
    rate: float = field(default=1.0, metadata={"gt": 0, "le": 1})
    status: int = field(default=500, metadata={"ge": 400, "le": 599})
    retry_after_s: float | None = field(default=None, metadata={"ge": 0})
    hang: bool = False  # no answer, ever
    held_by: str | None = None  # a file: while it exists there is no answer, then the usual one
    reset: bool = False  # the connection is torn down
    crash: bool = False  # the server ends, with everything that is in flight

    def __post_init__(self) -> None:
        """Raises ValueError: `match` cannot be searched."""
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match is no regular expression: {error}") from error


@dataclass(frozen=True)
class SimOptions:
    """How the server behaves."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    # the median; of every request, streaming or not
    latency_s: float = field(default=0.0, metadata={"ge": 0})
    latency_sigma: float = field(default=0.0, metadata={"ge": 0})  # of a lognormal distribution
    # of one request, beside the latency
    tokens_per_s: float | None = field(default=None, metadata={"gt": 0})
    slots: int = field(default=64, metadata={"ge": 1})  # requests at once; the others wait
    start_s: float = field(default=0.0, metadata={"ge": 0})  # until /health answers
    # while requests run: of a server that is too busy to say soon that it is well
    health_latency_s: float = field(default=0.0, metadata={"ge": 0})
    metrics_latency_s: float = field(default=0.0, metadata={"ge": 0})
    errors: tuple[ErrorRule, ...] = ()
    # file that a JSON line is appended to for each request: prompt, status, path, body
    record: str | None = None
    fail_start: str | None = None  # printed before the server ends, instead of starting
    fail_start_exit_code: int = field(default=1, metadata={"ge": 1, "le": 255})
    crash_after_requests: int | None = field(default=None, metadata={"ge": 1})
    # /health answers, nothing is completed
    freeze_after_requests: int | None = field(default=None, metadata={"ge": 1})


def read_options(text: str) -> SimOptions:
    """Options that the engine has validated, from JSON.

    Raises:
        ValueError: it is no JSON, or an expression cannot be searched.
        TypeError: it holds names that are none of options.
    """
    given = json.loads(text)
    rules = tuple(ErrorRule(**rule) for rule in given.pop("errors", ()))
    return SimOptions(**given, errors=rules)
