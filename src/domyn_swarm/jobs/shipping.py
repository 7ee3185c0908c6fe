"""The source of a job that no worker could import: from a script or a notebook cell.

Workers receive text: the definition and, as far as it refers to them, the imports, functions,
classes and plain values around it. Nothing is pickled. Values without a source form are refused.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import re
import sys
from collections.abc import Callable
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any, get_origin

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.jobs.decorator import FunctionJob
from domyn_swarm.jobs.source_text import assignment_of, names_of, namespace_of, source_text


def definition_of(job: SwarmJob) -> type | Callable[..., Any]:
    """The user's definition: a function, or a class."""
    return job.function if isinstance(job, FunctionJob) else type(job)


def importable_name(job: SwarmJob) -> str | None:
    """`module:name` by which another process imports the job's class or function, if it can."""
    defined = definition_of(job)
    module = sys.modules.get(defined.__module__)
    if (
        defined.__module__ == "__main__"
        or module is None
        or getattr(module, "__file__", None) is None
    ):
        return None
    for name, value in vars(module).items():
        if value is type(job) or (isinstance(value, FunctionJob) and type(value) is type(job)):
            return f"{defined.__module__}:{name}"
    return None


def source_of(job: SwarmJob) -> str:
    """The text of a module that defines the job under its own name.

    Raises:
        ConfigError: the source is not available, or it refers to values without a source form.
    """
    defined = definition_of(job)
    collector = _Collector(defined.__name__)
    collector.define(defined.__name__, defined)
    return "\n\n".join(["from __future__ import annotations", *collector.parts]) + "\n"


class _Collector:
    """Parts of the module, each after those that it needs."""

    def __init__(self, job: str) -> None:
        self.parts: list[str] = []
        self._job = job
        self._seen: dict[str, Any] = {}

    def define(self, name: str, defined: type | Callable[..., Any]) -> None:
        """Add a function or a class, and everything that it refers to."""
        self._seen[name] = defined
        text = source_text(defined)
        if text is None:
            raise self._refusal(name, "its source cannot be found")
        around = namespace_of(defined)
        for one in sorted(names_of(text) - {name}):
            if one in around:
                self._add(one, around[one])
        self.parts.append(text)

    def _add(self, name: str, value: Any) -> None:  # noqa: ANN401 - whatever a global is
        if name in self._seen:
            if self._seen[name] is not value:
                raise self._refusal(name, "two different things have this name")
            return
        self._seen[name] = value
        line = _import_of(name, value) or _constant(name, value)
        if line is not None:
            self.parts.append(line)
        elif isinstance(value, FunctionJob):
            self.define(name, value.function)
        elif isinstance(value, FunctionType | type):
            self.define(name, value)
        elif get_origin(value) is not None and (text := assignment_of(name)) is not None:
            around = vars(sys.modules["__main__"])
            for one in sorted(names_of(text) - {name}):
                if one in around:
                    self._add(one, around[one])
            self.parts.append(text)
        else:
            raise self._refusal(name, f"a {type(value).__name__} cannot be written down")

    def _refusal(self, name: str, why: str) -> ConfigError:
        refers = "" if name == self._job else f" refers to {name!r}, which"
        return ConfigError(
            f"The job {self._job}{refers} does not travel to a worker: {why}.",
            hint="Put the job into a module and import it from there, or make what it needs "
            "inside of it.",
        )


def _import_of(name: str, value: Any) -> str | None:  # noqa: ANN401 - whatever a global is
    if isinstance(value, ModuleType):
        return None if value.__name__ == "__main__" else f"import {value.__name__} as {name}"
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or module == "__main__":
        return None
    try:
        same = getattr(import_module(module), qualname, None) is value
    except ImportError:
        return None
    return f"from {module} import {qualname} as {name}" if same else None


def _constant(name: str, value: Any) -> str | None:  # noqa: ANN401 - whatever a global is
    if isinstance(value, re.Pattern):
        return f"import re\n{name} = re.compile({value.pattern!r}, {int(value.flags)})"
    try:
        return f"{name} = {value!r}" if ast.literal_eval(repr(value)) == value else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def module_from(source: str) -> ModuleType:
    """Run a shipped source as a module of its own.

    Raises:
        ConfigError: it fails.
    """
    name = f"domyn_swarm_job_{hashlib.blake2b(source.encode(), digest_size=8).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    module, file = ModuleType(name), f"<{name}>"
    module.__file__ = file
    lines = source.splitlines(keepends=True)
    linecache.cache[file] = (len(source), None, lines, file)  # for tracebacks, and the identity
    sys.modules[name] = module
    try:
        exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the user's own job
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            f"The job's source fails on this machine: {type(error).__name__}: {error}",
            hint="What it imports has to be installed where the job runs.",
        ) from error
    return module
