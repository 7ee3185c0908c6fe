"""Counts how processes end that used the HTTP library or refused an input, and how many aborted.

    python benchmarks/process_ends.py KIND PROCESSES [AT_ONCE]

KIND is `script` (asyncio's own loop and our client, 20 requests), `job` (a job's worker, 8 rows) or
`refused` (`job submit` of a CSV file without the column that is asked for). Each process is forked
from one that has imported everything, and ends as a program does: through the interpreter's end.
Prints one line of JSON: how many processes ended with which code, -6 for SIGABRT.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyreqwest.client  # noqa: F401 - loaded once, for all
from typing_extensions import override

from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.session import EndpointAccess, open_session
from domyn_swarm.cli import app, submit  # noqa: F401 - likewise
from domyn_swarm.jobs import worker
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.services import jobs  # noqa: F401 - likewise

_LISTING = {"object": "list", "data": [{"id": "m", "object": "model"}]}
_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
_MESSAGE = {"role": "assistant", "content": "hello"}
_CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "usage": _USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "message": _MESSAGE}],
}


class _Server(asyncio.Protocol):
    """Answers a listing to GET, a chat to POST, on connections that stay open."""

    def __init__(self) -> None:
        self._rest = b""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    @override
    def data_received(self, data: bytes) -> None:
        self._rest += data
        while b"\r\n\r\n" in self._rest:
            head, _, rest = self._rest.partition(b"\r\n\r\n")
            fields = [line.partition(b":") for line in head.lower().split(b"\r\n")]
            length = next((int(value) for name, _, value in fields if name == b"content-length"), 0)
            if len(rest) < length:
                return
            self._rest = rest[length:]
            body = json.dumps(_LISTING if head.startswith(b"GET") else _CHAT).encode()
            kind = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
            self._transport.write(b"%s%d\r\n\r\n%s" % (kind, len(body), body))  # type: ignore[attr-defined]


def _serve() -> tuple[int, str]:
    """Start the server in a process of its own; its id and address."""
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(_Server, "127.0.0.1", 0, backlog=1024)
            os.write(write_end, str(server.sockets[0].getsockname()[1]).encode())
            await server.serve_forever()

        asyncio.run(serve())
    return pid, f"http://127.0.0.1:{int(os.read(read_end, 10))}"


def _script(url: str, _folder: Path) -> None:
    async def ask() -> None:
        access = EndpointAccess(lambda: url, "key")
        async with open_session(access, RetryPolicy(), Tally(), print) as (client, _):
            messages = [{"role": "user", "content": "hello"}]
            chats = [
                client.chat.completions.create(model="m", messages=messages) for _ in range(20)
            ]
            await asyncio.gather(*chats)

    asyncio.run(ask())


def _job(url: str, folder: Path) -> None:
    pq.write_table(
        pa.table({"prompt": [f"p{number}" for number in range(8)]}), folder / "in.parquet"
    )
    spec = JobSpec(
        job_id="j",
        name="j",
        job="domyn_swarm.jobs:ChatCompletionJob",
        model="m",
        endpoint_url=url,
        input=str(folder / "in.parquet"),
        output=str(folder / "out.parquet"),
        input_columns=("prompt",),
        checkpoint_root=str(folder / "checkpoints"),
        min_version="0.0.0",
    )
    (folder / "job.json").write_text(spec.model_dump_json())
    sys.exit(worker.main([str(folder)]))


def _refused(url: str, folder: Path) -> None:
    (folder / "in.csv").write_text("id;text\n" + "1;hello\n" * 5000)
    os.environ["DOMYN_SWARM_HOME"] = str(folder / "home")
    asked = ["--endpoint", url, "--model", "m", "--input", str(folder / "in.csv")]
    kept = ["--input-column", "prompt", "--output", str(folder / "out.csv")]
    sys.argv = ["domyn-swarm", "job", "submit", *asked, *kept]
    app.main()


KINDS: dict[str, Callable[[str, Path], None]] = {
    "script": _script,
    "job": _job,
    "refused": _refused,
}


def main() -> None:
    """Fork the processes and count their ends; in each of them, do its work."""
    kind, processes = sys.argv[1], int(sys.argv[2])
    at_once = int(sys.argv[3]) if len(sys.argv) > 3 else 4
    server, url = _serve()
    ends: Counter[int] = Counter()
    began, running, scratch = time.monotonic(), 0, Path(tempfile.mkdtemp())
    for number in range(processes):
        if running == at_once:
            ends[os.waitstatus_to_exitcode(os.wait()[1])] += 1
            running -= 1
        (folder := scratch / str(number)).mkdir()
        if os.fork() == 0:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 1)
            os.dup2(devnull, 2)
            KINDS[kind](url, folder)
            return
        running += 1
    for _ in range(running):
        ends[os.waitstatus_to_exitcode(os.wait()[1])] += 1
    shutil.rmtree(scratch)
    os.kill(server, signal.SIGKILL)
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"kind": kind, "processes": processes, "ends": ends, "seconds": seconds}))


if __name__ == "__main__":
    main()
