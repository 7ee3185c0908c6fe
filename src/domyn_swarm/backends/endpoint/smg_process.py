"""The smg router's process. It dies with the endpoint program, however that ends.

`python -m domyn_swarm.backends.endpoint.smg_process PARENT KEY_FILE ARGUMENTS`: its pid, JSON.
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
    """Replicas are reached within the site. The router would ask them through the proxy that the
    environment names for what is outside; it asks for nothing there.
    """
    for name in [one for one in os.environ if one.lower().endswith("_proxy")]:
        del os.environ[name]


def main(parent: str, key_file: str, told: str) -> None:
    """Be the router."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)  # the endpoint program died before it could be followed
    _forget_proxies()
    from smg.launch_router import launch_router
    from smg.router_args import RouterArgs

    key = Path(key_file).read_text("utf-8").strip()
    launch_router(RouterArgs(**json.loads(told), api_key=key))


if __name__ == "__main__":
    main(*sys.argv[1:])
