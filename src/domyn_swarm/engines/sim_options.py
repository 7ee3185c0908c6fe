"""`engine_options` of the simulator, with the bounds of each field.

The engine validates the user's options by these bounds (`parse_options`). The server reads the
validated options without checking them again, and so does not load pydantic.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True)
class ErrorRule:
    """A fault of requests whose prompt matches. The first rule that applies is used."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    match: str = ""  # regular expression, searched in the prompt
    # how often it applies to one prompt; None: always
    times: int | None = field(default=None, metadata={"ge": 1})
    # share of the prompts to which it applies, chosen by a hash of the prompt
    rate: float = field(default=1.0, metadata={"gt": 0, "le": 1})
    status: int = field(default=500, metadata={"ge": 400, "le": 599})
    retry_after_s: float | None = field(default=None, metadata={"ge": 0})
    hang: bool = False  # the request is never answered
    held_by: str | None = None  # a file: the request is answered normally once it is deleted
    reset: bool = False  # the connection is aborted
    crash: bool = False  # the server ends; all requests in flight are lost

    def __post_init__(self) -> None:
        """Raises ValueError: `match` is not a regular expression."""
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match is not a regular expression: {error}") from error


@dataclass(frozen=True)
class OutputTokens:
    """The lengths of answers: lognormally distributed, and the same each time for one prompt."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    median: int = field(default=200, metadata={"ge": 1})
    sigma: float = field(default=0.0, metadata={"ge": 0, "le": 5})  # 0: every answer has the median
    seed: int = 0  # another seed gives other lengths


@dataclass(frozen=True)
class VllmOptions:
    """The engine that `sim_vllm` models. The defaults are measurements of others.

    Llama-3.1-8B-Instruct in 16 bits on one GPU of 80 GB. One sequence alone on an H100 takes 6.5 ms
    per token (vLLM 0.21, concurrency sweep of InferenceBench, yobitelcomm.github.io/bench: 6.48 ms
    at one request, 6.59 ms at four). The run of `vllm bench serve` in vLLM's pull request 18566
    (1,000 requests of ShareGPT at once; 256 sequences, the default) has a median of 25.4 ms between
    two tokens, so 0.074 ms for each further sequence; and 214 ms for a step that also reads a full
    budget of 8,192 tokens, so 43,000 tokens/s. That run took 30.9 s and wrote 6,583 tokens/s; the
    model reproduces both within a tenth. KV memory: 90 % of 80 GB, less 16 GB of weights and 3 GB
    of activations, divided by 128 KiB per token.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    # factor on the figures below; a list: of replica 0, 1, …, starting over after the last
    speed: float | tuple[float, ...] = 1.0
    kv_tokens: int = field(default=400_000, metadata={"ge": 1})  # capacity of KV memory
    block_tokens: int = field(default=16, metadata={"ge": 1})  # --block-size
    prefix_cache: bool = True  # --enable-prefix-caching
    # --max-num-batched-tokens: what one step reads and writes at most
    batched_tokens: int = field(default=8192, metadata={"ge": 1})
    prefill_tokens_per_s: float = field(default=43_000.0, metadata={"gt": 0})
    step_s: float = field(default=0.0065, metadata={"gt": 0})  # minimum duration of a step
    # added for each sequence that writes in the step
    sequence_step_s: float = field(default=0.000074, metadata={"ge": 0})
    characters_per_token: int = field(default=4, metadata={"ge": 1})
    # None: 16 tokens, as without a model; `max_tokens` cuts answers short
    output_tokens: OutputTokens | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: a speed is not positive, or KV memory holds less than one block."""
        if not self.speeds or not all(0 < speed < math.inf for speed in self.speeds):
            raise ValueError("speed must be a number above 0, or a list of such numbers")
        if self.kv_tokens < self.block_tokens:
            raise ValueError(
                f"kv_tokens is {self.kv_tokens}: less than one block of {self.block_tokens}"
            )

    @property
    def speeds(self) -> tuple[float, ...]:
        """The speed of each replica, in turn."""
        return self.speed if isinstance(self.speed, tuple) else (self.speed,)


@dataclass(frozen=True)
class SimOptions:
    """Behaviour of the simulated server."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    # median delay before each answer, streamed or not
    latency_s: float = field(default=0.0, metadata={"ge": 0})
    latency_sigma: float = field(default=0.0, metadata={"ge": 0})  # of a lognormal distribution
    # of one request, after the latency
    tokens_per_s: float | None = field(default=None, metadata={"gt": 0})
    slots: int = field(default=64, metadata={"ge": 1})  # requests at once; further ones wait
    start_s: float = field(default=0.0, metadata={"ge": 0})  # until /health answers 200
    # delay of /health while requests run: a server that is too busy to answer its probe soon
    health_latency_s: float = field(default=0.0, metadata={"ge": 0})
    metrics_latency_s: float = field(default=0.0, metadata={"ge": 0})
    metrics: bool = True  # false: /metrics answers 404, as a server without metrics does
    # a model of a vLLM engine decides how long answers take and what memory they need
    vllm: VllmOptions | None = None
    errors: tuple[ErrorRule, ...] = ()
    # file to which a JSON line is appended for each request: prompt, status, path, body
    record: str | None = None
    fail_start: str | None = None  # the server prints this text and ends instead of starting
    fail_start_exit_code: int = field(default=1, metadata={"ge": 1, "le": 255})
    crash_after_requests: int | None = field(default=None, metadata={"ge": 1})
    # /health answers, but no request is completed
    freeze_after_requests: int | None = field(default=None, metadata={"ge": 1})

    def __post_init__(self) -> None:
        """Raises ValueError: options that exclude each other."""
        if self.vllm is None:
            return
        if self.tokens_per_s is not None:
            raise ValueError("tokens_per_s has no effect with vllm: set vllm.step_s or vllm.speed")
        if self.slots > self.vllm.batched_tokens:
            raise ValueError(
                f"slots is {self.slots}, but vllm.batched_tokens only {self.vllm.batched_tokens}: "
                "each running sequence uses one token of every step"
            )


def read_options(text: str) -> SimOptions:
    """Options from JSON that the engine has validated.

    Raises:
        ValueError: the text is not JSON, or a `match` is not a regular expression.
        TypeError: a name is not that of an option.
    """
    given = json.loads(text)
    rules = tuple(ErrorRule(**rule) for rule in given.pop("errors", ()))
    model = _vllm(given.pop("vllm", None))
    return SimOptions(**given, errors=rules, vllm=model)


def _vllm(given: dict[str, Any] | None) -> VllmOptions | None:
    if given is None:
        return None
    output, speed = given.pop("output_tokens", None), given.pop("speed", 1.0)
    return VllmOptions(
        **given,
        speed=tuple(speed) if isinstance(speed, list) else speed,
        output_tokens=None if output is None else OutputTokens(**output),
    )
