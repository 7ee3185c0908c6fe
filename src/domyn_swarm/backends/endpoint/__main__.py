"""`python -m domyn_swarm.backends.endpoint SWARM_DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

from domyn_swarm import logs
from domyn_swarm.backends.endpoint.program import main
from domyn_swarm.errors import SwarmError

logs.configure("INFO")
try:
    main(Path(sys.argv[1]))
except SwarmError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(error.exit_code)
