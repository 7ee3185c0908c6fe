"""From `module:Class` and JSON parameters to a job. Nothing is unpickled."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.base import SwarmJob


def load_job(
    reference: str,
    kwargs: dict[str, Any],
    *,
    input_columns: Sequence[str] = (),
    output_columns: Sequence[str] = (),
    import_path: str | None = None,
) -> SwarmJob:
    """Import the class and construct the job.

    Raises:
        ConfigError: the reference, the class or the parameters are not usable.
    """
    module_name, _, class_name = reference.partition(":")
    if not module_name or not class_name:
        raise ConfigError(
            f"The job {reference!r} is not of the form MODULE:CLASS.",
            hint="For example my_package.jobs:Summarise.",
        )
    if import_path is not None and import_path not in sys.path:
        sys.path.insert(0, import_path)
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The job {reference!r} cannot be imported: {error}.",
            hint="Run from the folder that holds the module, or install its package.",
        ) from error
    except AttributeError as error:
        raise ConfigError(f"The module {module_name!r} has no {class_name!r}.") from error
    except Exception as error:
        raise ConfigError(
            f"Importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, SwarmJob)):
        raise ConfigError(f"{reference!r} is not a subclass of domyn_swarm.SwarmJob.")
    columns = {"input_columns": input_columns, "output_columns": output_columns}
    try:
        return found(**{**kwargs, **{name: given for name, given in columns.items() if given}})
    except TypeError as error:
        raise ConfigError(
            f"{class_name} does not take these parameters: {error}.",
            hint="Check --job-kwargs.",
        ) from error


def import_path_of(reference: str) -> str | None:
    """The `sys.path` entry that holds a job's module, for the worker; None when it is installed.

    The current folder counts, as it does for `python -m`.
    """
    from pathlib import Path

    name = reference.partition(":")[0].split(".")[0]
    here = Path.cwd()
    if (here / f"{name}.py").exists() or (here / name).is_dir():
        return str(here)
    return None
