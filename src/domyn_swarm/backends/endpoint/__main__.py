"""`python -m domyn_swarm.backends.endpoint SWARM_DIR [local|slurm]`, where the second argument
names the platform it runs on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from domyn_swarm import logs
from domyn_swarm.backends.endpoint.endpoint_program import load_spec, main
from domyn_swarm.backends.endpoint.platform_protocol import Platform
from domyn_swarm.errors import SwarmError
from domyn_swarm.paths import SwarmPaths


def _platform(name: str | None, paths: SwarmPaths) -> Platform | None:
    if name == "local":
        from domyn_swarm.backends.local.local_platform import LocalPlatform

        return LocalPlatform(paths, load_spec(paths).tag)
    if name == "slurm":
        from domyn_swarm.backends.slurm.slurm_platform import SlurmPlatform

        return SlurmPlatform(paths, load_spec(paths).tag)
    return None


logs.configure("INFO")
try:
    folder = SwarmPaths(Path(sys.argv[1]))
    main(folder, _platform(sys.argv[2] if len(sys.argv) > 2 else None, folder))
except SwarmError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(error.exit_code)
