"""What a command imports: its CPU time is mostly that, and modules do not vary as times do."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from domyn_swarm.state import SwarmStore
from patience import limit_s

NEVER = {
    *("alembic", "numpy", "pyarrow", "pandas", "polars", "ray", "fsspec", "jinja2", "aiohttp"),
    *("pyreqwest", "smg", "sqlalchemy", "uvloop", "pydantic", "textual", "leptonai"),
}
PROGRAM = """
import json, sys
from domyn_swarm.cli.app import main
sys.argv = ["domyn-swarm", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.stderr.write(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize(
    ("command", "more"),
    [
        (["swarm", "list", "--no-probe"], {"rich", "psutil", "yaml", "domyn_swarm.config.models"}),
        (["swarm", "list", "--no-probe", "--json"], {"rich", "psutil", "yaml"}),
        (["job", "list"], {"rich", "yaml"}),
        (["db", "prune"], {"rich", "yaml"}),
    ],
)
def test_a_command_that_reads_the_state_imports_what_it_needs(
    command: list[str], more: set[str]
) -> None:
    SwarmStore.open()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command],
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=True,
    )
    imported = set(json.loads(done.stderr[done.stderr.rindex("[") :]))
    assert imported & (NEVER | more) == set()
