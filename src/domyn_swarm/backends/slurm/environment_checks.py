"""What a script will find around it on a node, as far as it can be told from here."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise

from domyn_swarm.backends.checks import Check, failed, ok, warning
from domyn_swarm.backends.slurm.prologue import load_modules
from domyn_swarm.config.backends import SlurmConfig
from domyn_swarm.config.preamble import options_of

_LOAD_TIMEOUT_S = 60.0
_EXPECTED = re.compile(r"(?:HF|HUGGING_FACE|WANDB|AWS)_\w+|(?:https?|all|no)_proxy", re.IGNORECASE)


def environment_checks(config: SlurmConfig) -> Iterator[Check]:
    """Whether the modules can be loaded, and which variables do not arrive."""
    if config.modules:
        yield _modules(config)
    if (exported := _exported(config)) not in (None, "ALL"):
        yield _missing(str(exported))


def _modules(config: SlurmConfig) -> Check:
    """As a script would on a node: here they may be others."""
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
    """What the preamble has sbatch take along of the environment; None: it says nothing."""
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
