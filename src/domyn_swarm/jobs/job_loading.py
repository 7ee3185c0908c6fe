"""Makes a job from `module:Class` and JSON parameters. Nothing is unpickled."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from domyn_swarm.batch.run.request_json import not_finite
from domyn_swarm.errors import ConfigError, SwarmError
from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.jobs.shipping import definition_of, importable_name, module_from, source_of
from domyn_swarm.paths import expanded

_BUILT_IN = "domyn_swarm.jobs"


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
    if (place := not_finite(kwargs)) is not None:  # it would reach the worker as null
        raise ConfigError(
            f"The parameter {place} is no finite number, and JSON has no others.",
            hint="Leave it out, or give a number.",
        )
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
    """The job that a Python caller passed, as an object or as `"module:Class"`.

    Raises:
        ConfigError: it is not a job; the hint says how to make one.
    """
    if isinstance(job, SwarmJob):
        return job
    if isinstance(job, str):
        found = located(job)
        return load_job(found.reference, {}, import_path=found.import_path)
    if isinstance(job, type) and issubclass(job, SwarmJob):
        raise ConfigError(
            f"{job.__name__} is a class; an instance of it is needed.",
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


class Located(NamedTuple):
    """The result of `located`."""

    reference: str  # MODULE:NAME
    import_path: str | None  # of `sys.path`, in the worker; see `import_path_of`


def located(
    reference: str, kwargs: Mapping[str, Any] | None = None, folder: Path | None = None
) -> Located:
    """The job that a user names: `MODULE:NAME`, `FILE.py:NAME`, or the name of a built-in one.
    `folder`, that of a job file, has precedence over the current one.

    Raises:
        ConfigError: it is none of these, or the file is not a module.
    """
    place, colon, name = reference.rpartition(":")
    if not colon and reference in _built_in():
        return Located(f"{_BUILT_IN}:{reference}", import_path_of("", kwargs, folder))
    if not name.isidentifier():
        raise _no_reference(reference)
    if not place.endswith(".py"):
        if not all(part.isidentifier() for part in place.split(".")):
            raise _no_reference(reference)
        return Located(reference, import_path_of(reference, kwargs, folder))
    module, above = _module_of((folder or Path.cwd()) / expanded(place))
    return Located(f"{module}:{name}", str(above))


def _built_in() -> list[str]:
    names: list[str] = import_module(_BUILT_IN).__all__
    return [name for name in names if name not in ("SwarmJob", "job")]


def _no_reference(reference: str) -> ConfigError:
    place, _, name = reference.rpartition(":")
    close = get_close_matches(reference, _built_in(), 1)
    if reference.endswith(".py"):
        hint = f"Name the job in that file: {reference}:NAME."
    elif close:
        hint = f"Did you mean {close[0]}?"
    elif "/" in place and name:
        hint = f"Name the file: {place}.py:{name}."
    else:
        hint = (
            "Write MODULE:NAME (my_package.jobs:Summarise), FILE.py:NAME, or the name of a "
            f"built-in job: {', '.join(_built_in())}."
        )
    return ConfigError(f"The job {reference!r} is not of the form MODULE:NAME.", hint=hint)


def _module_of(file: Path) -> tuple[str, Path]:
    """The name of a file's module, and the folder from which it is imported: above the packages
    that the file is in.

    Raises:
        ConfigError: there is no such file, or it cannot be imported under its name.
    """
    if not file.is_file():
        raise ConfigError(f"There is no file {file}.", hint="Check the path in front of the colon.")
    names, folder = [file.stem], file.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    module = ".".join(names)
    if not all(name.isidentifier() for name in names):
        raise ConfigError(
            f"{file} cannot be imported: {module!r} is no name of a module.",
            hint="Rename it with letters, digits and _ only.",
        )
    known = sys.modules.get(module)
    taken = known is not None and getattr(known, "__file__", None) != str(file)
    if taken or names[0] in sys.stdlib_module_names:
        raise ConfigError(
            f"{file} cannot be imported: another module is called {module!r}.", hint="Rename it."
        )
    return module, folder


def _imported(reference: str, import_path: str | None, source: str | None) -> Any:  # noqa: ANN401 - a class or a job
    module_name, _, name = reference.partition(":")
    if import_path is not None and import_path not in sys.path:
        sys.path.insert(0, import_path)
    try:
        module = import_module(module_name) if source is None else module_from(source)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The job {reference!r} cannot be imported: {error}.",
            hint="Run from the folder that holds the module, or install its package.",
        ) from error
    except SwarmError:
        raise
    except Exception as error:
        raise ConfigError(
            f"Importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    try:
        found = getattr(module, name)
    except AttributeError as error:
        raise ConfigError(
            f"The module {module_name!r} has no {name!r}.", hint=_jobs_of(module, name)
        ) from error
    if _is_job(found):
        return found
    if inspect.isfunction(found):
        raise ConfigError(
            f"{reference!r} is a function, not a job.", hint="Decorate it: @job(output_schema=...)."
        )
    raise ConfigError(f"{reference!r} is not a subclass of domyn_swarm.SwarmJob.")


def _is_job(found: object) -> bool:
    return isinstance(found, SwarmJob) or (isinstance(found, type) and issubclass(found, SwarmJob))


def _jobs_of(module: ModuleType, name: str) -> str:
    """The jobs of a module, or the one that is probably meant."""
    listed = getattr(module, "__all__", vars(module))
    jobs = [one for one in listed if one != "SwarmJob" and _is_job(getattr(module, one, None))]
    if close := get_close_matches(name, jobs, 1):
        return f"Did you mean {close[0]}?"
    return f"It has: {', '.join(jobs)}." if jobs else "It has no job."


@dataclass(frozen=True)
class JobReference:
    """How another process makes the same job."""

    job: str
    kwargs: dict[str, Any]
    source: str | None = None


def reference_to(job: SwarmJob) -> JobReference:
    """A job object in a form for other processes: by import if that is possible, else by its
    source.

    Raises:
        ConfigError: its parameters are not JSON, or its source cannot be sent.
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


def import_path_of(
    reference: str, kwargs: Mapping[str, Any] | None = None, folder: Path | None = None
) -> str | None:
    """The `sys.path` entry for the worker with the job's module, and with that of an
    `output_schema` that is given by name; None when both are installed.

    `folder`, that of a job file, comes first, then the current one, as for `python -m`.
    """
    schema = (kwargs or {}).get("output_schema")
    references = (reference, schema if isinstance(schema, str) else "")
    names = [name for one in references if (name := one.partition(":")[0].split(".")[0])]
    for place in (folder, Path.cwd()):
        if place and any((place / f"{one}.py").exists() or (place / one).is_dir() for one in names):
            return str(place)
    return None
