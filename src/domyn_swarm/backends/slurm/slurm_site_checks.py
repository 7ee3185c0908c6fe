"""Whether a script has what it needs on a node, as far as that can be checked from here."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from domyn_swarm.backends.checks import (
    Check,
    check_engine,
    check_folder,
    check_model,
    failed,
    ok,
    resolves,
    warning,
)
from domyn_swarm.backends.slurm.script_contents import container_program, interpreter, slurm_config
from domyn_swarm.backends.slurm.scripts import load_modules
from domyn_swarm.backends.slurm.site_answers import SiteAnswers
from domyn_swarm.backends.slurm.site_limits import limit_checks
from domyn_swarm.config.backends import SlurmConfig
from domyn_swarm.config.preamble import options_of
from domyn_swarm.errors import PlatformError
from domyn_swarm.planning.plan import DeploymentPlan

_LOAD_TIMEOUT_S = 60.0
_EXPECTED = re.compile(r"(?:HF|HUGGING_FACE|WANDB|AWS)_\w+|(?:https?|all|no)_proxy", re.IGNORECASE)


def environment_checks(config: SlurmConfig) -> Iterator[Check]:
    """Whether the modules can be loaded, and which variables do not reach the nodes."""
    if config.modules:
        yield _modules(config)
    if (exported := _exported(config)) not in (None, "ALL"):
        yield _missing(str(exported))


def _modules(config: SlurmConfig) -> Check:
    """Tried as a script on a node would; the modules here may differ."""
    wanted = ", ".join(config.modules)
    try:
        done = subprocess.run(
            ["/bin/bash", "-c", load_modules(config.modules)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_LOAD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return warning("backend.modules", f"cannot be tried here: {error}", "Try them on a node.")
    if done.returncode == 0:
        return ok("backend.modules", f"{wanted}, as this machine has them")
    said = (done.stderr.strip().splitlines() or [wanted])[-1].removeprefix("domyn-swarm: ")
    if "has no `module`" in said:
        return warning("backend.modules", said, "The nodes need it: try `srun` with `module load`.")
    return failed("backend.modules", said, "Correct backend.modules; see `module avail`.")


def _exported(config: SlurmConfig) -> str | None:
    """Which part of the environment sbatch exports by the preamble; None: it does not say."""
    words = [word for line in config.preamble for word in options_of(line)]
    found = None
    for word, following in pairwise([*words, ""]):
        name, given, value = word.partition("=")
        if name == "--export":
            found = value if given else following
    return found


def _missing(exported: str) -> Check:
    taken = set(exported.split(","))
    own = sorted(name for name in os.environ if _EXPECTED.fullmatch(name) and name not in taken)
    if not own or "ALL" in taken:
        return ok("environment", f"--export={exported}")
    return warning(
        "environment",
        f"--export={exported} in the preamble: {', '.join(own)} of your shell will not reach "
        "engines and jobs",
        f"Write --export=ALL, or name them there: --export={','.join(own)}.",
    )


_NEEDED = ("sbatch", "squeue", "scancel", "scontrol", "srun")
_NODES_TRIED = 3
# File systems that other machines share; any other type is probably local to this machine.
_SHARED = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "cifs", "panfs"}
_SHARED |= {"wekafs", "virtiofs", "9p", "fuse.sshfs", "fuse.glusterfs", "orangefs", "afs", "smb3"}


def site_checks(plan: DeploymentPlan, site: SiteAnswers) -> Iterator[Check]:
    """Every check of one swarm, except whether Slurm would accept its scripts."""
    config = slurm_config(plan)
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        yield failed(
            "commands",
            f"{', '.join(missing)} is not on PATH",
            "Run this on a login node, or load the module that brings Slurm's commands.",
        )
        return
    yield ok("commands", ", ".join(_NEEDED))
    try:
        yield _accounting(site)
        yield from _partitions(config, site)
        yield from _associations(config, site)
        yield from limit_checks(plan, site)
        yield _names(site)
        if plan.elastic is not None:
            yield ok(
                "elastic",
                "the endpoint's job submits replicas with sbatch from its node; where nodes may "
                "not, `status` says so",
            )
    except PlatformError as error:
        yield failed("controller", error.message, error.hint or "Ask again in a while.")
    yield check_folder("home_directory", plan.home_directory)
    yield _shared("shared home", plan.home_directory)
    yield from check_model(plan)
    yield from environment_checks(config)
    yield from _programs(plan, config)


def _accounting(site: SiteAnswers) -> Check:
    kept = site.settings.get("AccountingStorageType", "")
    if kept.endswith("/none"):
        return warning(
            "accounting",
            "Slurm keeps no accounts here: backend.account and backend.qos cannot be checked",
            "None needed; ends of jobs are known for as long as the controller keeps them.",
        )
    if shutil.which("sacct") is None:
        return warning(
            "accounting",
            "sacct is not on PATH",
            "None needed: ends of jobs are then known for as long as the controller keeps them.",
        )
    return ok("accounting", "sacct is there")


def _partitions(config: SlurmConfig, site: SiteAnswers) -> Iterator[Check]:
    for key, partition in {
        "partition": config.partition,
        "endpoint.partition": config.endpoint.partition or config.partition,
    }.items():
        unknown = [one for one in partition.split(",") if one not in site.partitions]
        if not unknown:
            yield ok(f"backend.{key}", partition)
        else:
            there = ", ".join(sorted(site.partitions))
            yield failed(f"backend.{key}", f"there is no {unknown[0]!r}", f"Choose from: {there}")


def _associations(config: SlurmConfig, site: SiteAnswers) -> Iterator[Check]:
    """Account and QoS, as far as there is accounting."""
    associations = site.accounts()
    accounts = {account for account, _ in associations}
    allowed = {
        qos for account, names in associations for qos in names if config.account in (None, account)
    }
    qos = allowed or site.all_qos()  # without rules of who may use it, it must exist
    for key, wanted, known in (
        ("account", config.account, accounts),
        ("qos", config.qos, qos),
        ("endpoint.qos", config.endpoint.qos, qos),
    ):
        if wanted is None or not known:
            continue
        if wanted in known:
            yield ok(f"backend.{key}", wanted)
        else:
            yield failed(
                f"backend.{key}",
                f"you have no {key.rpartition('.')[2]} {wanted!r}",
                f"Choose one of: {', '.join(sorted(known))}",
            )


def _names(site: SiteAnswers) -> Check:
    """Whether this machine resolves the nodes' addresses that Slurm shows: it must reach the
    endpoint at one of them.
    """
    for address in site.node_addresses(_NODES_TRIED):
        if not resolves(address):
            return failed(
                "node names",
                f"this machine ({socket.gethostname()}) cannot resolve {address}, a node's address",
                "Have the nodes' names in its DNS or /etc/hosts, or work on a machine that knows "
                "them; replicas and jobs on the nodes are not concerned.",
            )
    return ok("node names", "this machine resolves the nodes' addresses")


def _shared(name: str, folder: Path) -> Check:
    """Whether other machines share a folder, by the type of its file system."""
    kinds = {}
    for line in Path("/proc/mounts").read_text("utf-8").splitlines():
        _, place, kind, *_ = line.split()
        kinds[place.replace("\\040", " ")] = kind
    here = folder.resolve()
    mount = next(str(one) for one in (here, *here.parents) if str(one) in kinds)
    if kinds[mount] in _SHARED:
        return ok(name, f"{folder} is on {kinds[mount]}")
    return warning(
        name,
        f"{folder} is on {kinds[mount]}, which other machines may not see",
        "Set DOMYN_SWARM_HOME or home_directory to a folder that the nodes share.",
    )


def _environment(python: str) -> Check:
    """Checks of `venv_path`: its interpreter, and our package."""
    if not Path(python).exists():
        return failed("venv_path", f"there is no {python}", "Create the environment there.")
    if not any(Path(python).parent.parent.glob("lib*/python3*/site-packages/domyn_swarm*")):
        return failed("venv_path", "it has no domyn-swarm", f"{python} -m pip install domyn-swarm")
    return ok("venv_path", python)


def _without_effect(keys: Sequence[str]) -> Check:
    named = " and ".join(f"backend.{one}" for one in keys)
    why = f"{named}: without effect, since no container runs the engine"
    return warning("container", why, "Remove them, or set image and backend.container.")


def _programs(plan: DeploymentPlan, config: SlurmConfig) -> Iterator[Check]:
    """Where our programs and the engine are on the nodes."""
    python = None if config.venv_path is None else interpreter(config, "")
    there = python is None or Path(python).exists()
    if python is not None:
        yield _environment(python)
    container = container_program(config)
    if container is None or plan.image is None:  # the configuration has both or neither
        if idle := [one for one in ("mounts", "container_args") if getattr(config, one)]:
            yield _without_effect(idle)
        yield from check_engine(plan, python) if there else ()
        return
    if container != "pyxis" and shutil.which(container) is None:
        yield warning(
            "container",
            f"{container} is not on PATH here",
            "The nodes need it; if a module brings it, name that in backend.modules.",
        )
    if plan.image.startswith("/") and not Path(plan.image).exists():
        yield failed("image", f"there is no {plan.image}", "Correct image, or pull it there.")
    else:
        yield ok("image", plan.image)
