"""One of a job's workers: `python -m domyn_swarm.jobs.linked_worker <job folder> <descriptor>`.

Started by the job's coordinator, which talks to it over the socket `descriptor` and hands it rows.
Ends with 0, or with 1 if it cannot continue; it ends at once if its coordinator has ended.
"""

from __future__ import annotations

import signal
import socket
import sys
from asyncio import get_running_loop, open_unix_connection
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.link import Connection, Failed, Link, Order
from domyn_swarm.batch.run.session import open_session
from domyn_swarm.batch.run.standing import Suspects
from domyn_swarm.batch.run.traffic import Traffic
from domyn_swarm.batch.run.worker_loop import RangeWorker
from domyn_swarm.errors import SwarmError
from domyn_swarm.jobs.preparation import load_work
from domyn_swarm.jobs.worker_program import access_of, event_loop_runner, read_spec
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.logs import configure, get_logger
from domyn_swarm.paths import JobPaths

_log = get_logger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Work until there are no more rows; returns the exit code."""
    configure("INFO")
    folder, descriptor = sys.argv[1:] if arguments is None else arguments
    spec = read_spec(JobPaths(Path(folder)))
    return work_over(spec, lambda: _at(int(descriptor)))


async def _at(descriptor: int) -> Connection:
    return await open_unix_connection(sock=socket.socket(fileno=descriptor))


def work_over(spec: JobSpec, connect: Callable[[], Awaitable[Connection]]) -> int:
    """Work for the coordinator at the other end of a connection; returns the exit code."""
    with event_loop_runner() as runner:
        try:
            runner.run(_work(spec, connect))
        except SwarmError as error:  # the coordinator has the error
            _log.error("%s", error)
            return 1
        except ConnectionError:
            return 1
    return 0


async def _work(spec: JobSpec, connect: Callable[[], Awaitable[Connection]]) -> None:
    job, keys, work = load_work(spec)
    work = replace(work, notice=lambda text: _log.warning("%s", text))
    tally = Tally()
    link: Link[Order] = Link(*await connect(), Order)  # type: ignore[arg-type]
    suspects, traffic = Suspects(), Traffic()
    worker = RangeWorker(link, keys, tally, suspects, traffic)
    loop = get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    try:
        policy, access = work.retry_policy, access_of(spec)
        opening = open_session(access, policy, tally, work.notice, suspects, traffic=traffic)
        async with opening as (client, saturation):
            worker.placing = saturation.placing
            job.bind(client, spec.model)
            await worker.run(job.transform_items, work)
    except SwarmError as error:
        link.say(Failed(error.message, error.hint))
        raise
    finally:
        await link.close()


if __name__ == "__main__":
    sys.exit(main())
