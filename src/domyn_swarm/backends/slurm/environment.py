"""The environment that Slurm's commands run in."""

from __future__ import annotations

import os
import re

_STEERS = re.compile(r"(?:SLURM|SBATCH|SRUN|SQUEUE|SACCT|SCANCEL|SCONTROL)_")
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})


def submitting_environment() -> dict[str, str]:
    """Ours, without the variables that change what Slurm's commands do: those of the job that we
    may run in, and defaults of the user's that would overrule the configuration.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not _STEERS.match(name)
    }
