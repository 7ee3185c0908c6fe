"""Measures `--max-concurrency auto` against the best fixed number.

    python benchmarks/limits.py

Whole runs without HTTP, in virtual time: the real runner, dispatch and limits over the simulator's
model of vLLM. So the ratios do not depend on what else runs. Start and climb are part of each run,
the drain of its last rows is not. A fixed number is one for the whole job, so that `auto` may be
better than the best of them, where that is another one in each part of the job.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from batch.modelled_swarm import CASES, Case, rates


def measured(case: Case) -> tuple[dict[int, float], float]:
    """Rows per second with each fixed number, and with `auto`."""
    fixed = {concurrency: sum(rates(case, concurrency)) for concurrency in case.fixed}
    return fixed, sum(rates(case, None))


def lines() -> list[tuple[str, str]]:
    """What was measured, and its figure."""
    found = []
    for name, case in CASES.items():
        fixed, auto = measured(case)
        best = max(fixed, key=fixed.__getitem__)
        figure = f"{auto / fixed[best]:.1%} of {fixed[best]:.0f} rows/s with {best} in flight"
        found.append((f"limit auto against the best fixed one: {name}", figure))
    return found


if __name__ == "__main__":
    for what, figure in lines():
        print(f"{what}: {figure}")
