"""The command of a replica inside its container. Pure.

The watchdog is one file of standard library that runs on any Python from 3.8 on: the image's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from domyn_swarm.config.backends import SlurmConfig
from domyn_swarm.errors import ConfigError
from domyn_swarm.paths import SwarmPaths

_IMAGE_PYTHON = "python3"


def inside(
    config: SlurmConfig, image: str | None, program: Sequence[str], paths: SwarmPaths
) -> list[str]:
    """The command that runs a Python program where the engine lives.

    Raises:
        ConfigError: the container needs an image and there is none.
    """
    if config.container == "none":
        return [sys.executable, *program]
    if image is None:
        raise ConfigError(
            f"backend.container is {config.container}, but there is no image.",
            hint="Set image, or backend.container: none when the engine is installed on the nodes.",
        )
    mounts = {str(paths.root): str(paths.root), **config.mounts}
    python = [_IMAGE_PYTHON, *program]
    if config.container in ("apptainer", "singularity"):
        binds = [f"--bind={source}:{target}" for source, target in mounts.items()]
        return [config.container, "exec", "--nv", *binds, *config.container_args, image, *python]
    if config.container == "enroot":
        binds = [f"--mount={source}:{target}" for source, target in mounts.items()]
        return ["enroot", "start", *binds, *config.container_args, image, *python]
    places = ",".join(f"{source}:{target}" for source, target in mounts.items())
    options = [f"--container-image={image}", f"--container-mounts={places}"]
    return ["srun", "--overlap", "--ntasks=1", *options, *config.container_args, *python]
