"""The smg router's process. It dies with the endpoint program, however that ends.

`python -m domyn_swarm.backends.endpoint.smg_process PARENT KEY_FILE ARGUMENTS`: the parent's pid,
the key's file, and the router's arguments as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def _forget_proxies() -> None:
    """Remove proxy variables: the replicas are within the site, and the router sends nothing
    outside it.
    """
    for name in [one for one in os.environ if one.lower().endswith("_proxy")]:
        del os.environ[name]


def main(parent: str, key_file: str, arguments: str) -> None:
    """Run the router in this process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)  # the endpoint program died before its end could be tied to this process
    _forget_proxies()
    from smg.launch_router import launch_router
    from smg.router_args import RouterArgs

    key = Path(key_file).read_text("utf-8").strip()
    launch_router(RouterArgs(**json.loads(arguments), api_key=key))


if __name__ == "__main__":
    main(*sys.argv[1:])
