"""Results of `doctor`: one record per check, and the checks that all platforms share."""

from __future__ import annotations

import errno
import importlib.util
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from domyn_swarm.errors import ConfigError
from domyn_swarm.model import Record
from domyn_swarm.paths import expanded
from domyn_swarm.planning.plan import DeploymentPlan

_LEAST_FREE_GB = 2.0
_TRIED_BYTES = 64 * 1024
_MODULES = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "xllamacpp"}
_INSTALL = {"vllm": "pip install vllm", "sglang": "pip install sglang"}


class Check(Record):
    """The result of one check."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    fix: str | None = None  # what to do; None if the check passed


def ok(name: str, detail: str) -> Check:
    """The check passed."""
    return Check(name=name, status="ok", detail=detail)


def warning(name: str, detail: str, fix: str) -> Check:
    """It may cause a failure."""
    return Check(name=name, status="warning", detail=detail, fix=fix)


def failed(name: str, detail: str, fix: str) -> Check:
    """It will cause a failure."""
    return Check(name=name, status="failed", detail=detail, fix=fix)


def check_folder(name: str, folder: Path, setting: str = "home_directory") -> Check:
    """Whether files can be written to a folder, and whether there is room for some. `setting` is
    the key that chooses another folder.
    """
    existing = next(one for one in (folder, *folder.parents) if one.exists())
    if not existing.is_dir():
        return failed(name, f"{existing} is no folder", f"Move it away, or set another {setting}.")
    try:  # tried on the disk itself: permissions and quotas may be enforced by another machine
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".domyn-swarm-") as file:
            file.write(b"0" * _TRIED_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "Make room there" if full else f"Correct its permissions (owner {_owner(existing)})"
        why = f"{existing} cannot be written to: {error.strerror}"
        return failed(name, why, f"{fix}, or set another {setting}.")
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < _LEAST_FREE_GB:
        return warning(name, f"{free_gb:.1f} GB are free at {existing}", "Make room there.")
    return ok(name, f"{folder}, {free_gb:.0f} GB free")


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a user of another machine
        return str(path.stat().st_uid)


def resolves(host: str) -> bool:
    """Whether this machine resolves a name; a resolver that does not answer now is no evidence
    against it.
    """
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        return error.errno == socket.EAI_AGAIN
    except (OSError, UnicodeError):
        return True
    return True


def check_private(name: str, path: Path, holds: str) -> Check:
    """Whether only the owner can read the files at a path."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        wanted = "700" if path.is_dir() else "600"
        words = f"others may read {path} (mode {mode:03o}), which holds {holds}"
        return warning(name, words, f"chmod {wanted} {shlex.quote(str(path))}")
    return ok(name, f"{path} is its owner's alone")


def check_model(plan: DeploymentPlan) -> Iterator[Check]:
    """A model that is a path must exist; any other is a name of the hub."""
    model = plan.model
    if not model.startswith(("/", "~", ".")):
        yield ok("model", f"{model}: a name, which the engine finds or fetches")
    elif expanded(model).exists():
        yield ok("model", model)
    else:
        yield failed("model", f"there is nothing at {model}", "Correct model, or fetch it there.")


def check_engine(plan: DeploymentPlan, python: str | None) -> Iterator[Check]:
    """Whether the engine's package is installed; `python` is that of another environment."""
    module = engine_module(plan.engine)
    if module is None:
        yield ok("engine", f"{plan.engine}: nothing to install")
        return
    if python is not None:
        root = Path(python).parent.parent
        found = any(root.glob(f"lib*/python3*/site-packages/{module}"))
        where = str(root)
    else:
        found, where = importlib.util.find_spec(module) is not None, "this environment"
    if found:
        yield ok("engine", f"{plan.engine} is installed in {where}")
    else:
        yield failed(
            "engine", f"{plan.engine} is not installed in {where}", f"There: {engine_install(plan)}"
        )


def refuse_uninstalled(plan: DeploymentPlan) -> None:
    """Refuse an engine that would run in this environment and is not installed in it. An engine
    with an environment of its own cannot be checked before it starts.

    Raises:
        ConfigError: it is not installed.
    """
    if plan.backend != "local" or "PYTHONPATH" in plan.env:
        return
    for check in check_engine(plan, None):
        if check.status == "failed":
            raise ConfigError(f"{check.detail}.", hint=check.fix or "")


def engine_module(engine: str) -> str | None:
    """The module that must be importable for an engine to start; None: nothing to install."""
    return _MODULES.get(engine)


def engine_install(plan: DeploymentPlan) -> str:
    """The command that installs a plan's engine."""
    return _INSTALL.get(plan.engine, f"pip install 'domyn-swarm[{plan.engine}]'")
