"""One run over a frame of one library, in a process of its own.

    python benchmarks/frame_run.py KIND URL INPUT.parquet CONCURRENCY [CPUS]

Prints JSON: seconds to read the file into a frame, to convert it to Arrow batches and results back,
of the whole `run`; CPU of this process and of those that it started. CPUS is for Ray.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import psutil
import pyarrow as pa

from domyn_swarm.data.registry import backend_of
from domyn_swarm.jobs import ChatCompletionJob


def _read(kind: str, source: str) -> Any:  # noqa: ANN401 - a frame
    if kind == "arrow":
        import pyarrow.parquet as pq

        return pq.read_table(source)
    if kind == "pandas":
        import pandas as pd

        return pd.read_parquet(source)
    if kind.startswith("polars"):
        import polars as pl

        return pl.scan_parquet(source) if kind == "polars-lazy" else pl.read_parquet(source)
    import ray.data

    return ray.data.read_parquet(source, override_num_blocks=8).materialize()


def _start_ray(cpus: int) -> float:
    import ray
    import ray.data

    began = time.monotonic()
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    return time.monotonic() - began


def _converted(frame: Any, result: Any) -> tuple[float, float]:  # noqa: ANN401 - frames
    """Seconds from a frame to batches, and from the batches of its results to a frame."""
    backend = backend_of(frame)
    began = time.monotonic()
    for _ in backend.batches(frame):
        pass
    into_s = time.monotonic() - began
    schema = backend.schema(result)
    batches: list[pa.RecordBatch] = list(backend.batches(result))
    began = time.monotonic()
    backend.build(schema, batches, frame)
    return into_s, time.monotonic() - began


class Cpu:
    """Seconds of this process and, where asked for, of all that it starts. These are looked at
    now and then: Ray's are gone when the work is done, and nobody adds up what they took.
    """

    _EVERY_S = 0.2  # what an ended process took after the last look is lost

    def __init__(self, *, of_all: bool) -> None:
        self._of_all = of_all
        self._took: dict[int, float] = {}
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._note()
        self._before = sum(self._took.values())
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look once more."""
        self._over.set()
        self._looking.join()
        self._note()
        self.seconds = sum(self._took.values()) - self._before

    def _look(self) -> None:
        while not self._over.wait(self._EVERY_S):
            self._note()

    def _note(self) -> None:
        own = psutil.Process()
        others = own.children(recursive=True) if self._of_all else []
        for process in (own, *others):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._took[process.pid] = times.user + times.system


def main() -> None:
    """See the module."""
    kind, url, source, concurrency = sys.argv[1:5]
    told: dict[str, float] = {}
    if kind == "ray":
        told["start_s"] = _start_ray(int(sys.argv[5]))
    began = time.monotonic()
    frame = _read(kind, source)
    told["read_s"] = time.monotonic() - began
    job = ChatCompletionJob(input_columns=["prompt"], max_concurrency=int(concurrency))
    root = Path(source).parent / "checkpoints"
    with Cpu(of_all=kind == "ray") as cpu:
        told["began_at"] = began = time.monotonic()
        result = job.run(
            frame, endpoint=url, model="mock", progress=False, checkpoint_dir=root, tag=kind
        )
        told["run_s"] = time.monotonic() - began
    told["cpu_s"] = cpu.seconds
    if kind not in {"ray", "polars-lazy"}:  # those two never have all rows here
        told["into_s"], told["back_s"] = _converted(frame, result)
    print(json.dumps(told))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
