"""From `module:Class` and JSON parameters to a job. Nothing is unpickled."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from domyn_swarm.errors import ConfigError, SwarmError
from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.jobs.travelling import definition_of, importable_name, module_from, source_of


def load_job(
    reference: str,
    kwargs: dict[str, Any],
    *,
    input_columns: Sequence[str] = (),
    output_columns: Sequence[str] = (),
    import_path: str | None = None,
    source: str | None = None,
) -> SwarmJob:
    """Import the class, or the decorated function, and construct the job.

    With `source` the reference is `source:NAME`: a name that this text defines.

    Raises:
        ConfigError: the reference, the class or the parameters are not usable.
    """
    found = _imported(reference, import_path, source)
    columns = {"input_columns": input_columns, "output_columns": output_columns}
    given = {**kwargs, **{name: names for name, names in columns.items() if names}}
    try:
        job: SwarmJob = found(**given)
    except TypeError as error:
        raise ConfigError(
            f"{reference.rpartition(':')[2]} does not take these parameters: {error}.",
            hint="Check --job-kwargs.",
        ) from error
    job.check()
    return job


def job_given(job: object) -> SwarmJob:
    """The job that a caller of Python gave, by itself or as `"module:Class"`.

    Raises:
        ConfigError: it is none; says how to make one of it.
    """
    if isinstance(job, SwarmJob):
        return job
    if isinstance(job, str) and ":" in job:
        return load_job(job, {}, import_path=import_path_of(job))
    if isinstance(job, type) and issubclass(job, SwarmJob):
        raise ConfigError(
            f"{job.__name__} is a class, and what is asked is a job of it.",
            hint=f"Make one: {job.__name__}(), with its options.",
        )
    if inspect.isfunction(job):
        raise ConfigError(
            f"{job.__name__} is a function, not a job.",
            hint="Decorate it: @job(output_schema=...).",
        )
    raise ConfigError(
        f"The job is a {type(job).__name__}, and no job.",
        hint="The job comes first, then the rows: a job such as ChatCompletionJob(), a function "
        "with @job, or the text 'module:Class'.",
    )


def _imported(reference: str, import_path: str | None, source: str | None) -> Any:  # noqa: ANN401 - a class or a job
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise ConfigError(
            f"The job {reference!r} is not of the form MODULE:CLASS.",
            hint="For example my_package.jobs:Summarise.",
        )
    if import_path is not None and import_path not in sys.path:
        sys.path.insert(0, import_path)
    try:
        module = import_module(module_name) if source is None else module_from(source)
        found = getattr(module, name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The job {reference!r} cannot be imported: {error}.",
            hint="Run from the folder that holds the module, or install its package.",
        ) from error
    except AttributeError as error:
        raise ConfigError(f"The module {module_name!r} has no {name!r}.") from error
    except SwarmError:
        raise
    except Exception as error:
        raise ConfigError(
            f"Importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    if isinstance(found, SwarmJob) or (isinstance(found, type) and issubclass(found, SwarmJob)):
        return found
    if inspect.isfunction(found):
        raise ConfigError(
            f"{reference!r} is a function, not a job.", hint="Decorate it: @job(output_schema=...)."
        )
    raise ConfigError(f"{reference!r} is not a subclass of domyn_swarm.SwarmJob.")


@dataclass(frozen=True)
class JobReference:
    """How another process makes the same job."""

    job: str
    kwargs: dict[str, Any]
    source: str | None = None


def reference_to(job: SwarmJob) -> JobReference:
    """A job object in a form that travels: by import where that is possible, else by its source.

    Raises:
        ConfigError: its parameters are not JSON, or its source cannot be taken along.
    """
    kwargs = job.travelling()
    try:
        json.dumps(kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"A parameter of the job {job.label} is not JSON: {error}.",
            hint="Give it numbers, text, lists and dictionaries.",
        ) from error
    name = importable_name(job)
    if name is not None:
        return JobReference(name, kwargs)
    return JobReference(f"source:{definition_of(job).__name__}", kwargs, source_of(job))


def import_path_of(reference: str, kwargs: Mapping[str, Any] | None = None) -> str | None:
    """The `sys.path` entry that holds what a job is made of, for the worker: its module, and that
    of an `output_schema` that is named; None when both are installed.

    The current folder counts, as it does for `python -m`.
    """
    from pathlib import Path

    schema = (kwargs or {}).get("output_schema")
    here = Path.cwd()
    for one in (reference, schema if isinstance(schema, str) else ""):
        name = one.partition(":")[0].split(".")[0]
        if name and ((here / f"{name}.py").exists() or (here / name).is_dir()):
            return str(here)
    return None
