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


def imported_by(program: str) -> set[str]:
    """The modules that a program has loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{program}\nprint(json.dumps([*sys.modules]))"],
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=True,
    )
    return set(json.loads(done.stdout))


def test_a_worker_and_a_submission_load_what_they_need() -> None:
    worker = imported_by("import domyn_swarm.jobs.worker")
    rare = {"pydantic", "pyarrow.compute", "aiohttp", "jinja2", "sqlalchemy"}
    assert worker & (rare | {"yaml", "rich", "domyn_swarm.config.models"}) == set()
    submission = imported_by(
        "import domyn_swarm.services.jobs, domyn_swarm.swarm.job_file, domyn_swarm.jobs.preparation"
    )
    models = {"domyn_swarm.config.models", "domyn_swarm.config.backends"}
    assert submission & (models | {"pyarrow.compute", "aiohttp", "sqlalchemy"}) == set()
