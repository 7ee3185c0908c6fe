"""Runs SGLang's server inside this process, so that no argv contains the API key.

    python -m domyn_swarm.engines.sglang_server FLAGS …

The flags are SGLang's own; the key is read from `SGLANG_SERVER_KEY`. Our tests do not run it
(no GPU).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module


def main() -> None:
    """Parse SGLang's flags, add the key, and serve until SIGTERM."""
    server = import_module("sglang.srt.entrypoints.http_server")
    arguments = import_module("sglang.srt.server_args")
    flags = [*sys.argv[1:], "--enable-metrics"]
    parsed = arguments.prepare_server_args(flags)
    parsed.api_key = os.environ.pop("SGLANG_SERVER_KEY", None)
    server.launch_server(parsed)


if __name__ == "__main__":
    main()
