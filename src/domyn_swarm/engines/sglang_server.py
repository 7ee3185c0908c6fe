"""Starts SGLang's server inside this process, so that the key stands in no argv.

    python -m domyn_swarm.engines.sglang_server FLAGS …

The flags are SGLang's own; the key comes from `SGLANG_SERVER_KEY`. Not run here (no GPU).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module


def main() -> None:
    """Parse SGLang's flags, add the key, serve until told to stop."""
    server = import_module("sglang.srt.entrypoints.http_server")
    arguments = import_module("sglang.srt.server_args")
    flags = [*sys.argv[1:], "--enable-metrics"]
    parsed = arguments.prepare_server_args(flags)
    parsed.api_key = os.environ.pop("SGLANG_SERVER_KEY", None)
    server.launch_server(parsed)


if __name__ == "__main__":
    main()
