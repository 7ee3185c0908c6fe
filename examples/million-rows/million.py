"""A million rows through a swarm, lazily: neither the input nor the output is ever in memory."""

import argparse
import resource
import sys
import time

import polars as pl

from domyn_swarm import DomynLLMSwarm, DomynLLMSwarmConfig
from domyn_swarm.jobs import TemplateJob


def main() -> None:
    """Write the rows, ask them, write the answers."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--endpoint", help="instead of the simulated swarm; needs --model")
    options.add_argument("--model")
    chosen = options.parse_args()

    rows = pl.LazyFrame({"id": pl.int_range(chosen.rows, eager=True)}).with_columns(
        text=pl.lit("What comes after ") + pl.col("id").cast(pl.String) + "?"
    )
    rows.sink_parquet("rows.parquet")
    ask = TemplateJob(prompt="{{ text }}", id_column="id", max_tokens=8)
    lazy = pl.scan_parquet("rows.parquet")

    began = time.monotonic()
    if chosen.endpoint:
        answers = ask.run(lazy, endpoint=chosen.endpoint, model=chosen.model)
    else:
        with DomynLLMSwarm(cfg=DomynLLMSwarmConfig.read("swarm.yaml")) as swarm:
            answers = swarm.run(ask, lazy)
    answers.sink_parquet("answers.parquet")
    seconds = time.monotonic() - began

    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = pl.scan_parquet("answers.parquet").select(pl.len()).collect().item()
    print(f"{count} answers in {seconds:.1f} s, at most {peak_mb:.0f} MB in memory")
    sys.exit(count != chosen.rows)


if __name__ == "__main__":
    main()
