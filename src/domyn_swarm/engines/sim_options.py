"""`engine_options` of the simulator: bounds stand with the fields.

The engine validates what a user wrote by them (`parse_options`); the server takes what the engine
hands on as it is, without the library that validates.
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
class OutputTokens:
    """How long answers are: a lognormal distribution, by the prompt, so always the same for one."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    median: int = field(default=200, metadata={"ge": 1})
    sigma: float = field(default=0.0, metadata={"ge": 0, "le": 5})  # 0: all of them the median
    seed: int = 0  # another one: other lengths


@dataclass(frozen=True)
class VllmOptions:
    """The engine that `sim_vllm` models.

    The defaults are those of Llama-3.1-8B-Instruct in 16 bits on one GPU of 80 GB: 6.5 ms for a
    token of one sequence alone on an H100 (vLLM 0.21, concurrency sweep of InferenceBench,
    yobitelcomm.github.io/bench: 6.48 ms at one request, 6.59 ms at four), and from the run of
    `vllm bench serve` in vLLM's pull request 18566 (1,000 requests of ShareGPT at once; 256
    sequences, its default): 25.4 ms between two tokens in the median, so 0.074 ms for each further
    sequence, and 214 ms where a step also reads a whole budget of 8,192 tokens, so 43,000 tokens/s.
    That run took 30.9 s and wrote 6,583 tokens/s; the model of it is within a tenth of both.
    Memory: 90 % of 80 GB, less 16 GB of weights and 3 GB of activations, by 128 KiB a token.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    # times as fast as the figures below; several: of replica 0, 1, ..., and then from the first on
    speed: float | tuple[float, ...] = 1.0
    kv_tokens: int = field(default=400_000, metadata={"ge": 1})  # that KV memory holds
    block_tokens: int = field(default=16, metadata={"ge": 1})  # --block-size
    prefix_cache: bool = True  # --enable-prefix-caching
    # --max-num-batched-tokens: that one step reads and writes
    batched_tokens: int = field(default=8192, metadata={"ge": 1})
    prefill_tokens_per_s: float = field(default=43_000.0, metadata={"gt": 0})
    step_s: float = field(default=0.0065, metadata={"gt": 0})  # the least that a step takes
    # more for each sequence that writes in it
    sequence_step_s: float = field(default=0.000074, metadata={"ge": 0})
    characters_per_token: int = field(default=4, metadata={"ge": 1})
    # None: 16 tokens, as without a model; `max_tokens` cuts them short
    output_tokens: OutputTokens | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: a speed that is none, or no room for a block."""
        if not self.speeds or not all(0 < one < math.inf for one in self.speeds):
            raise ValueError("speed must be a number above 0, or a list of such")
        if self.kv_tokens < self.block_tokens:
            raise ValueError(
                f"kv_tokens is {self.kv_tokens}: less than one block of {self.block_tokens}"
            )

    @property
    def speeds(self) -> tuple[float, ...]:
        """Of the replicas, in turn."""
        return self.speed if isinstance(self.speed, tuple) else (self.speed,)


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
    metrics: bool = True  # false: /metrics is 404, as of a server that has none
    # a model of a vLLM engine takes the time and the memory that answers need; None: no model
    vllm: VllmOptions | None = None
    errors: tuple[ErrorRule, ...] = ()
    # file that a JSON line is appended to for each request: prompt, status, path, body
    record: str | None = None
    fail_start: str | None = None  # printed before the server ends, instead of starting
    fail_start_exit_code: int = field(default=1, metadata={"ge": 1, "le": 255})
    crash_after_requests: int | None = field(default=None, metadata={"ge": 1})
    # /health answers, nothing is completed
    freeze_after_requests: int | None = field(default=None, metadata={"ge": 1})

    def __post_init__(self) -> None:
        """Raises ValueError: options that exclude each other."""
        if self.vllm is None:
            return
        if self.tokens_per_s is not None:
            raise ValueError("tokens_per_s has no place beside vllm: step_s and speed say it there")
        if self.slots > self.vllm.batched_tokens:
            raise ValueError(
                f"slots is {self.slots}, but vllm.batched_tokens only {self.vllm.batched_tokens}: "
                "each running sequence takes one of those in every step"
            )


def read_options(text: str) -> SimOptions:
    """Options that the engine has validated, from JSON.

    Raises:
        ValueError: it is no JSON, or an expression cannot be searched.
        TypeError: it holds names that are none of options.
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
