"""The command of a replica inside its container. Pure but for names of variables that are set.

The watchdog is one file of standard library that runs on any Python from 3.8 on: the image's.
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
# Enroot takes no variable in by itself; the engine's own are in the watchdog's spec.
_TAKEN_IN = ("CUDA_VISIBLE_DEVICES", "DOMYN_SWARM_NODE_PORT", "HF_HOME", "HF_TOKEN", "TMPDIR")
_ALONE = "PYTHONNOUSERSITE"  # else Python finds ~/.local in there, where home is mounted
# They name what is the node's: its Pythons, what conda and modules have set up. What an engine is
# to have of these is in the swarm's `env`.
_STAY_OUT = re.compile(r"PYTHON\w+|VIRTUAL_ENV\w*|_?CONDA_\w+|BASH_ENV|CUDA_(?:HOME|PATH|ROOT)")


LIFELINE = "lifeline"
"""The last word of a command of ours that is to end when its input does."""


def loses_signals(plan: TaskPlan) -> bool:
    """Whether a program inside is not told of the death of whoever started it: the kernel forgets
    that for a setuid program, which starts these containers on some sites. Where Slurm does not
    track processes by control groups, nobody else would end it.
    """
    return plan.container in ("apptainer", "singularity")


def inside(plan: TaskPlan, program: Sequence[str], paths: SwarmPaths) -> list[str]:
    """The command that runs a Python program where the engine lives. The swarm's folder, and a
    model that is a folder, are the same in there.

    Raises:
        ConfigError: the container needs an image and there is none.
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
    environment, whatever sbatch was told to take along.
    """
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    return ["--overlap", "--export=ALL", *([f"--cpus-per-task={cpus}"] if cpus else [])]
