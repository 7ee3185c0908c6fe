"""The runner with and without a journal: the difference is what keeping results costs.

python benchmarks/engine_alone.py kept|dropped URL INPUT CONCURRENCY
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq

from domyn_swarm.batch.background import beside
from domyn_swarm.batch.checkpoint.journal import Journal, SyncedSink
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Result, Row
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.runner import Events, Runner, RunPolicy
from domyn_swarm.batch.run.session import EndpointAccess, open_session
from domyn_swarm.jobs import ChatCompletionJob
from domyn_swarm.jobs.worker_program import event_loop_runner


class Nowhere:
    """A sink that keeps nothing."""

    def append(self, results: Sequence[Result]) -> None:
        """Drop them."""


def rows_of(path: str) -> Iterator[list[Row]]:
    """The input's rows, digests included, as a job reads them."""
    keys, start = RowKeys(["prompt"], None), 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(2048):
            items = keys.items(batch)
            digests = keys.digests(batch, start, items)
            yield [Row(start + at, digests[at].tobytes(), item) for at, item in enumerate(items)]
            start += batch.num_rows


async def run(kind: str, url: str, path: str, concurrency: int) -> None:
    """Ask for every row."""
    tally, retry = Tally(), RetryPolicy()
    access = EndpointAccess(lambda: url, None)
    job = ChatCompletionJob()
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder), 1)
        sink = SyncedSink(journal, 5_000) if kind == "kept" else None
        syncing = nullcontext() if sink is None else beside(sink.keep_syncing(1.0))
        async with open_session(access, retry, tally, print) as (client, _), syncing:
            job.bind(client, "mock")
            runner = Runner(
                job.transform_items,
                sink or Nowhere(),
                RunPolicy(concurrency),
                encode=job.encoder(),
                tally=tally,
                events=Events(),
            )
            await runner.run(rows_of(path))
        journal.close()


if __name__ == "__main__":
    what, endpoint, source, width = sys.argv[1:]
    with event_loop_runner() as loop:
        loop.run(run(what, endpoint, source, int(width)))
