"""The command of a replica inside its container. Pure but for reading which variables are set.

The watchdog is one file that needs only the standard library of Python 3.8, so the image's Python
runs it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from domyn_swarm.backends.slurm.task_plan import TaskPlan
from domyn_swarm.errors import ConfigError
from domyn_swarm.paths import SwarmPaths

IMAGE_PYTHON = "python3"
# Enroot passes no variable in by default; the engine's own are in the watchdog's spec.
_TAKEN_IN = ("CUDA_VISIBLE_DEVICES", "DOMYN_SWARM_NODE_PORT", "HF_HOME", "HF_TOKEN", "TMPDIR")
_ALONE = "PYTHONNOUSERSITE"  # else Python uses ~/.local where home is mounted
# Variables of the node: its Pythons, the settings of conda and modules. Those that an engine needs
# are set in the swarm's `env`.
_STAY_OUT = re.compile(r"PYTHON\w+|VIRTUAL_ENV\w*|_?CONDA_\w+|BASH_ENV|CUDA_(?:HOME|PATH|ROOT)")


LIFELINE = "lifeline"
"""-"""


def loses_signals(plan: TaskPlan) -> bool:
    """Whether a program inside does not receive the signal at its parent's death: the kernel clears
    that setting for setuid programs, which some sites use to start containers. Where Slurm does not
    track processes by cgroups, the program would outlive the task.
    """
    return plan.container in ("apptainer", "singularity")


def inside(plan: TaskPlan, program: Sequence[str], paths: SwarmPaths) -> list[str]:
    """The command that runs a Python program where the engine is installed. The swarm's folder, and
    a model that is a folder, have the same paths inside.

    Raises:
        ConfigError: the container needs an image and none is configured.
    """
    if plan.container == "none":
        return [sys.executable, *program]
    kept_out = sorted(name for name in os.environ if _STAY_OUT.fullmatch(name))
    unset = [word for name in kept_out for word in ("-u", name)]
    return ["env", *unset, f"{_ALONE}=1", *_contained(plan, program, paths)]


def _contained(plan: TaskPlan, program: Sequence[str], paths: SwarmPaths) -> list[str]:
    if plan.image is None:
        raise ConfigError(
            f"backend.container is {plan.container}, but there is no image.",
            hint="Set image, or backend.container: none when the engine is installed on the nodes.",
        )
    places = {str(paths.root): str(paths.root)}
    if plan.model.startswith("/"):
        places[plan.model] = plan.model
    temporary = os.environ.get("TMPDIR")
    if temporary is not None:
        places[temporary] = temporary
    mounts = [f"{source}:{target}" for source, target in {**places, **plan.mounts}.items()]
    more, python = plan.container_args, [IMAGE_PYTHON, *program]
    if plan.container in ("apptainer", "singularity"):
        binds = [f"--bind={mount}" for mount in mounts]
        return [plan.container, "exec", "--nv", *binds, *more, plan.image, *python]
    if plan.container == "enroot":
        binds = [f"--mount={mount}" for mount in mounts]
        taken = [f"--env={name}" for name in _TAKEN_IN if name in os.environ]
        taken.append(f"--env={_ALONE}")
        return ["enroot", "start", *binds, *taken, *more, plan.image, *python]
    here = os.environ.get("SLURMD_NODENAME")
    step = ["--nodes=1", "--ntasks=1", *([f"--nodelist={here}"] if here else [])]
    options = [f"--container-image={plan.image}", f"--container-mounts={','.join(mounts)}"]
    return ["srun", *whole_share(), *step, *options, *more, *python]


def whole_share() -> list[str]:
    """Options of an `srun` within a task: all CPUs that the task has on a node, and the task's
    environment, whatever sbatch exported.
    """
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    return ["--overlap", "--export=ALL", *([f"--cpus-per-task={cpus}"] if cpus else [])]
