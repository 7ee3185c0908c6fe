"""Run tests again and again, each time in another order and beside two busy loops.

    python tests/often.py 10 -m "not slow" ...

What follows the number goes to pytest. Prints how each run ended, at the end all of it; the exit
code is 1 if any run failed. A test that fails now and then has a cause; this is where it shows.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence

_BUSY = "while True: pass"


def run_once(arguments: Sequence[str], seed: int) -> tuple[bool, float]:
    """Whether it passed, and its seconds."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", f"--randomly-seed={seed}", *arguments]
    burners = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(2)]
    try:
        passed = subprocess.run(command, check=False).returncode == 0
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    return passed, time.monotonic() - began


def main(count: int, arguments: Sequence[str]) -> int:
    """Run that many times; return the exit code."""
    lines = []
    for number in range(1, count + 1):
        seed = random.SystemRandom().randrange(2**32)
        passed, took_s = run_once(arguments, seed)
        how = "passed" if passed else "FAILED"
        lines.append(f"run {number} of {count}: {how} in {took_s:.0f} s, --randomly-seed={seed}")
        print(lines[-1], flush=True)
    print("\n".join(lines))
    return int(any("FAILED" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
