"""llama.cpp's HTTP server as a program, which xllamacpp does not provide.

The API key is read from `LLAMACPP_API_KEY`, so that no argv contains it. On SIGTERM the program
finishes the requests in flight, then exits without tearing the server down, which would hang them.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

DEFAULT_SLOTS = 4
_DRAIN_S = 60.0
_DRAIN_POLL_S = 0.05
_BUSY = re.compile(r"^llamacpp:requests_(?:processing|deferred)(?:\{[^}]*\})? +([0-9.eE+]+)", re.M)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The program's flags."""
    parser = argparse.ArgumentParser(
        prog="llamacpp_server", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--alias", required=True, help="the name that /v1/models lists")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    counts = [
        (("--slots", "--n-parallel"), DEFAULT_SLOTS, "requests at once"),
        (("--ctx-size",), 8192, "tokens, shared by the slots"),
        (("--threads",), 1, "processor cores"),
    ]
    for names, default, meaning in counts:
        parser.add_argument(*names, type=_count, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--embedding", action="store_true", help="serve embeddings too")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"invalid count: {text}")
    return number


def serve(flags: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT. Ends the process."""
    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = flags.model
    params.model_alias = {flags.alias}
    params.hostnames = [flags.host]
    params.port = flags.port
    params.n_parallel = flags.slots
    params.n_ctx = flags.ctx_size
    params.cpuparams.n_threads = flags.threads
    params.cpuparams_batch.n_threads = flags.threads
    params.endpoint_metrics = True
    params.ui = False
    if flags.embedding:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    key = os.environ.pop("LLAMACPP_API_KEY", "")
    if key:
        params.api_keys = [key]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = xllamacpp.Server(params)
    print(f"serving {flags.alias} on {flags.host}:{flags.port}", flush=True)  # noqa: T201 - the engine's log
    stop.wait()
    _drain(server)
    os._exit(0)


def _drain(server: Any) -> None:  # noqa: ANN401 - untyped library
    """Return when no request is in flight, or after `_DRAIN_S`."""
    deadline = time.monotonic() + _DRAIN_S
    idle = 0
    # Idle twice: a slot becomes free a moment before the last bytes of its answer are sent.
    while idle < 2 and time.monotonic() < deadline:
        idle = 0 if busy(server) else idle + 1
        time.sleep(_DRAIN_POLL_S)


def busy(server: Any) -> float:  # noqa: ANN401 - untyped library
    """The number of requests that the server processes or has queued."""
    answer = server.handle_metrics()
    text = answer if isinstance(answer, str) else str(answer)
    return sum(float(value) for value in _BUSY.findall(text.replace("\\n", "\n")))


def main() -> int:
    """Run the server; the exit code, 1 if it cannot start."""
    flags = parse(sys.argv[1:])
    try:
        serve(flags)
    except RuntimeError as error:
        print(f"cannot serve {flags.model}: {error}", file=sys.stderr)  # noqa: T201 - the engine's log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
