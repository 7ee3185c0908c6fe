"""What each program loads before it does anything: a swarm starts several on every node, and their
start is most of what they cost. And what commands that only look have loaded when they have shown
it: the same holds for them. What is new here has a reason, or stands where it is used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from domyn_swarm import DomynLLMSwarmConfig
from domyn_swarm.model import JobStatus, SwarmPhase, utc_now
from domyn_swarm.paths import JobPaths, write_private
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from domyn_swarm.swarm.launch import prepare
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
RECORDS = {"model", "record", "record_fields"}
TASK = {*GROUND, "backends.slurm", "probing", "restart_budget", "temporary"}
JOB = {
    *GROUND,
    "batch",
    "data",
    "engine_load",
    "process_identity",
    "jobs",
    *RECORDS,
    "net",
    "open_files",
    "planning",
    "probing",
    "replaced_files",
}


class Loads(NamedTuple):
    """All that a program may load beside the standard library."""

    packages: set[str]
    ours: set[str]  # floors; of the backends the folder or the module


PROGRAMS: Mapping[str, Loads] = {
    "watchdog": Loads(set(), {"restart_budget", "watchdog", "watchdog_ledger", "watchdog_rules"}),
    "follower": Loads(set(), {"follower", "restart_budget"}),
    "backends.exit_wrapper": Loads(set(), {"backends.exit_wrapper", "paths", "temporary"}),
    "backends.node_report": Loads(set(), {"backends.node_report"}),
    "backends.slurm.replica_task": Loads(set(), {*TASK, "backends.gpus"}),
    "backends.slurm.node_task": Loads(set(), TASK),
    "backends.slurm.endpoint_task": Loads(set(), {*TASK, "backends.endpoint"}),
    "backends.endpoint.smg_process": Loads(set(), {"backends.endpoint"}),
    "backends.endpoint.endpoint_program": Loads(
        {*AIOHTTP, "msgspec", "psutil"},
        {
            *GROUND,
            *("backends.endpoint", "backends.gpu_time", "backends.ledger", "backends.notification"),
            *("claims", "engine_load", "process_identity"),
            *RECORDS,
            "open_files",
            "probing",
            "restart_budget",
        },
    ),
    "engines.llamacpp_server": Loads(set(), {"engines", "errors"}),
    "engines.sglang_server": Loads(set(), {"engines", "errors"}),
    "engines.sim_server": Loads(AIOHTTP, {"engines", "errors"}),
    "jobs.worker": Loads({*COLUMNS, "psutil", "typing_extensions"}, JOB),
    "jobs.linked_worker": Loads({*COLUMNS, "psutil", "typing_extensions"}, JOB),
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


LOOKS: Mapping[str, set[str]] = {  # beside msgspec and Typer
    "status": {"psutil"},
    "status demo --json": {"psutil"},
    "swarm list": {"psutil"},
    "swarm list --no-probe": {"psutil"},
    "job list": set(),
    "job status one": set(),
    "job status one --json": set(),
    "config check swarm.yaml": {*PYDANTIC, "psutil", "yaml"},
}
LOOK = """
import json, sys
from domyn_swarm.cli.app import main
before = set(sys.modules)
sys.argv = ["domyn-swarm", *{words!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
new = set(sys.modules) - before
new = [name for name in new if getattr(sys.modules[name], "__spec__", None)]
print(json.dumps(new), file=sys.stderr)
"""
FIELDS = {"name": "demo", "model": "m", "engine": "sim", "backend": "local", "replicas": 1}


@pytest.fixture
def recorded(swarm_home: Path, tmp_path: Path) -> Path:
    """A folder with a configuration; a swarm and a job of it are recorded, and have files."""
    plan = prepare(DomynLLMSwarmConfig.model_validate(FIELDS)).plan
    now, folder, job = utc_now(), tmp_path / "swarm", tmp_path / "job"
    store = SwarmStore.open()
    store.create_swarm(
        SwarmRecord(
            name="demo",
            tag="demo.1",
            backend="local",
            phase=SwarmPhase.READY,
            swarm_dir=str(folder),
            plan_json=plan.model_dump_json(),
            parts=({"kind": "replica", "platform_id": "1"},),
            created_at=now,
            updated_at=now,
        )
    )
    of_job = {"job_id": "one", "name": "j", "swarm": "demo", "platform": "local", "job_dir": job}
    of_job |= {"status": JobStatus.SUCCEEDED, "input": "in.csv", "output": "out.csv"}
    record = {**of_job, "job_dir": str(job), "submitted_at": now, "ended_at": now}
    store.create_job(JobRecord.model_validate(record))
    spec = {"job_id": "one", "name": "j", "job": "domyn_swarm.jobs:ChatCompletionJob"}
    spec |= {"model": "m", "input": "in.csv", "output": "out.csv"}
    spec |= {"checkpoint_root": str(tmp_path), "min_version": "0"}
    written = {"result": {"rows_total": 3, "rows_done": 3}, "spec": spec}
    for name, content in written.items():
        path = getattr(JobPaths(job), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, json.dumps(content))
    (tmp_path / "swarm.yaml").write_text(json.dumps(FIELDS))
    return tmp_path


@pytest.mark.parametrize("words", LOOKS)
def test_a_look_loads_what_it_shows_and_nothing_else(words: str, recorded: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(words=words.split())],
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=False,
        cwd=recorded,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or words == "swarm list"  # of which nothing runs
    modules = json.loads(done.stderr.splitlines()[-1])
    assert packages(modules) - {*TYPER, "msgspec", "typing_extensions"} - LOOKS[words] == set()
    assert {"ssl", "http.client", "asyncio", "email.message"} & {*modules} <= (
        {"ssl", "http.client", "email.message"} if words.startswith("config") else set()
    )
