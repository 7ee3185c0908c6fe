"""What each program loads before it does anything: a swarm starts several on every node, and their
start is most of what they cost. What is new here has a reason, or stands where it is used.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

import pytest

from patience import limit_s

AIOHTTP = {
    *("aiohttp", "aiohappyeyeballs", "aiosignal", "attr", "frozenlist", "idna", "multidict"),
    *("propcache", "typing_extensions", "yarl"),
}
PYDANTIC = {
    *("annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"),
}
COLUMNS = {"msgspec", "numpy", "pyarrow"}
TYPER = {"annotated_doc", "shellingham", "typer"}

GROUND = {"errors", "logs", "paths"}
TASK = {*GROUND, "backends.slurm", "probing", "temporary"}
JOB = {
    *GROUND,
    "batch",
    "data",
    "identity",
    "jobs",
    "model",
    "net",
    "open_files",
    "planning",
    "probing",
}


class Loads(NamedTuple):
    """All that a program may load beside the standard library."""

    packages: set[str]
    ours: set[str]  # floors; of the backends the folder or the module


PROGRAMS: Mapping[str, Loads] = {
    "watchdog": Loads(set(), {"watchdog", "watchdog_ledger", "watchdog_rules"}),
    "follower": Loads(set(), {"follower"}),
    "backends.exit_wrapper": Loads(set(), {"backends.exit_wrapper", "paths", "temporary"}),
    "backends.node_report": Loads(set(), {"backends.node_report"}),
    "backends.slurm.replica_task": Loads(set(), {*TASK, "backends.gpus"}),
    "backends.slurm.node_task": Loads(set(), TASK),
    "backends.slurm.endpoint_task": Loads(set(), {*TASK, "backends.endpoint"}),
    "backends.endpoint.smg_process": Loads(set(), {"backends.endpoint"}),
    "backends.endpoint.program": Loads(
        {*AIOHTTP, *PYDANTIC, "psutil"},
        {
            *GROUND,
            *("backends.endpoint", "backends.gpu_time", "backends.notification"),
            *("claims", "identity", "model"),
            "open_files",
            "probing",
        },
    ),
    "engines.llamacpp_server": Loads(set(), {"engines", "errors"}),
    "engines.sglang_server": Loads(set(), {"engines", "errors"}),
    "engines.sim_server": Loads(AIOHTTP, {"engines", "errors"}),
    "jobs.worker": Loads({*COLUMNS, *PYDANTIC, "psutil"}, JOB),
    "jobs.range_worker": Loads({*COLUMNS, *PYDANTIC, "psutil"}, JOB),
    "cli.app": Loads(TYPER, {"cli", "errors", "logs"}),
}
PROGRAM = """
import json, sys
before = set(sys.modules)
import {module}
new = set(sys.modules) - before
print(json.dumps([name for name in new if getattr(sys.modules[name], "__spec__", None)]))
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """The modules of each program, all of which start side by side."""
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(module=f"domyn_swarm.{name}")],
            stdout=subprocess.PIPE,
        )
        for name in PROGRAMS
    }
    found = {name: one.communicate(timeout=limit_s())[0] for name, one in started.items()}
    return {name: json.loads(printed) for name, printed in found.items()}


def packages(modules: list[str]) -> set[str]:
    tops = {module.partition(".")[0] for module in modules}
    foreign = tops - sys.stdlib_module_names - {"domyn_swarm"}
    return {top for top in foreign if not top.startswith("_sysconfigdata_")}  # Python's own


def ours(modules: list[str]) -> set[str]:
    parts = [module.split(".")[1:] for module in modules if module.startswith("domyn_swarm.")]
    deep = {".".join(part[:2]) for part in parts if part[0] == "backends" and len(part) > 1}
    return deep | {part[0] for part in parts if part[0] != "backends"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_loads_what_it_uses_and_nothing_else(
    program: str, loaded: dict[str, list[str]]
) -> None:
    assert packages(loaded[program]) - PROGRAMS[program].packages == set()
    assert ours(loaded[program]) - PROGRAMS[program].ours == set()


def test_the_list_names_no_more_than_some_program_loads(loaded: dict[str, list[str]]) -> None:
    for program, may in PROGRAMS.items():
        assert may.ours - ours(loaded[program]) == set(), program
