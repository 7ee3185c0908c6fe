"""Checks the arguments of `DomynLLMSwarm`'s methods: a configuration, a job and its options, a
count.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.errors import ConfigError
from domyn_swarm.swarm.job_request import JobRequest, request_of

if TYPE_CHECKING:
    from domyn_swarm.jobs.base import SwarmJob


def config_given(cfg: object) -> DomynLLMSwarmConfig:
    """Return the argument, if it is a configuration.

    Raises:
        ConfigError: it is not; the hint says how to make one from it.
    """
    if isinstance(cfg, DomynLLMSwarmConfig):
        return cfg
    what, hint = f"a {type(cfg).__name__}", "Give a DomynLLMSwarmConfig."
    if isinstance(cfg, str | Path):
        what = f"the text {str(cfg)!r}"
        hint = (
            f"A file: DomynLLMSwarm(DomynLLMSwarmConfig.read({str(cfg)!r})). "
            f"A swarm that is up: DomynLLMSwarm.attach({str(cfg)!r})."
        )
    elif isinstance(cfg, Mapping):
        what, hint = "a mapping", "Make one of it: DomynLLMSwarm(DomynLLMSwarmConfig(**cfg))."
    raise ConfigError(f"The configuration of a swarm is {what}.", hint=hint)


def check_rows(call: str, name: str, value: object) -> None:
    """Check that a value is a number of rows.

    Raises:
        ConfigError: it is not an integer from 1 on; names the argument.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"swarm.{call}({name}={value!r}): {name} is a number of rows.",
            hint="Give an integer from 1 on.",
        )


def request_given(
    job: SwarmJob | str, input_path: str | Path, output_path: str | Path, options: Mapping[str, Any]
) -> JobRequest:
    """The arguments of `submit_job`, `preview` and `forecast` as a request without a swarm.

    Raises:
        ConfigError: `job` is not a job, or an option is wrong.
    """
    from domyn_swarm.jobs.job_loading import job_given, reference_to  # slow: imports the client

    fields = {"input": str(input_path), "output": str(output_path), **options}
    if isinstance(job, str):
        return request_of({"job": job, **fields})
    found = reference_to(job_given(job))
    name = {"name": job.options.name} if job.options.name else {}
    made = {"job": found.job, "job_source": found.source, "job_kwargs": found.kwargs}
    return request_of({**made, **name, **fields})
