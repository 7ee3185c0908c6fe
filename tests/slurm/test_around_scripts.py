"""What scripts find around them on the nodes: modules, the environment, temporary folders."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from domyn_swarm.backends.slurm.slurm_site_checks import environment_checks
from domyn_swarm.config.backends import SlurmConfig
from domyn_swarm.errors import LaunchError
from domyn_swarm.model import JobStatus
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from locales import latin1
from process_list import running
from slurm.cluster import SlurmCluster
from slurm.swarms import (
    ENDPOINT_TASK,
    SIM_SERVER,
    Up,
    ended,
    endpoint_job,
    jobs_of,
    program,
    ready,
    request,
    swarm_paths,
    until,
)

MODULE = "BASH_FUNC_module%%"  # how bash hands on a function
LOADS = '() { export LOADED="$LOADED+$2"; }'
LACKS = "() { echo \"ERROR: Unable to locate a modulefile for '$2'\" >&2; return 1; }"
CHECKED = SlurmConfig(partition="main", modules=("cuda/12", "gcc"))


def engine_environment() -> dict[str, str]:
    """Of the cluster's only engine."""
    for one in running():
        try:
            told = one.environ()
            if SIM_SERVER in one.cmdline() and told.get("SLURM_CONF") == os.environ["SLURM_CONF"]:
                return told
        except psutil.Error:
            continue
    raise AssertionError("no engine runs")


@pytest.mark.parametrize(
    ("function", "said"), [(None, "has no `module`"), (LACKS, "cannot load the module cuda/12")]
)
def test_a_module_that_is_not_to_be_had_is_the_cause(
    up: Up, monkeypatch: pytest.MonkeyPatch, function: str | None, said: str
) -> None:
    if function is not None:
        monkeypatch.setenv(MODULE, function)
    with pytest.raises(LaunchError, match=said):
        up(replicas=1, backend={"modules": ["cuda/12"]})
    [check] = environment_checks(CHECKED)
    assert said in check.detail
    assert check.status == ("warning" if function is None else "failed")


def test_a_module_that_is_missing_is_noticed_where_modules_say_so_and_end_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Environment Modules 3 do; the file for what they say may have no place."""
    monkeypatch.setenv(MODULE, LACKS.replace("return 1", "return 0"))
    for folder in (tmp_path, tmp_path / "gone"):
        monkeypatch.setenv("TMPDIR", str(folder))
        [check] = environment_checks(CHECKED)
        assert (check.status, check.name) == ("failed", "backend.modules")
        assert "cannot load the module cuda/12" in check.detail
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setenv(MODULE, LOADS)
    [check] = environment_checks(CHECKED)
    assert check.status == "ok"
    assert [*tmp_path.iterdir()] == []


def test_of_a_swarm_that_is_not_waited_for_status_tells_the_module(
    up: Up, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODULE, LACKS)
    service = up(replicas=1, wait=False, backend={"modules": ["cuda/12"]})
    until(lambda: not jobs_of(slurm))
    assert "cannot load the module cuda/12" in service.status("demo").detail


def test_modules_are_loaded_for_all_that_runs(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a function of the shell's, or one that only a file of the site's defines."""
    (tmp_path / "lmod/init").mkdir(parents=True)
    (tmp_path / "lmod/init/bash").write_text(f"module {LOADS[:2]}\n{LOADS[3:]}\n")
    monkeypatch.setenv("LMOD_PKG", str(tmp_path / "lmod"))
    up(replicas=1, backend={"modules": ["cuda/12", "gcc"]})
    assert engine_environment()["LOADED"] == "+cuda/12+gcc"
    for name, resources in (("step", {}), ("job", {"detached": True})):
        asked = request(tmp_path / name, 5, resources={"detached": False, **resources})
        assert ended(JobService().submit(asked)).status is JobStatus.SUCCEEDED
    [check] = environment_checks(CHECKED)
    assert check.status == "ok"


def test_a_site_that_takes_no_environment_along(
    up: Up, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    config = SlurmConfig(partition="main", preamble=("--export=NONE",))
    [check] = environment_checks(config)
    assert check.status == "warning"
    assert "HF_TOKEN" in check.detail
    assert "secret" not in check.detail
    tools = {"PATH": slurm.env["PATH"], "SLURM_CONF": slurm.env["SLURM_CONF"]}
    tools["HWLOC_COMPONENTS"] = slurm.env["HWLOC_COMPONENTS"]
    backend = {"preamble": ["--export=NONE"], "env": tools}
    up(replicas=1, gpus_per_replica=8, backend=backend)  # two nodes
    assert ready() == 1
    assert "HF_TOKEN" not in program(ENDPOINT_TASK, endpoint_job(slurm)).environ()
    for name, resources in (("step", {}), ("job", {"detached": True})):
        asked = request(tmp_path / name, 5, resources={"detached": False, **resources})
        assert ended(JobService().submit(asked)).status is JobStatus.SUCCEEDED


def test_a_temporary_folder_of_another_machine_is_not_used(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "only-there"
    up(replicas=1, backend={"env": {"TMPDIR": str(elsewhere)}})
    assert "TMPDIR" not in engine_environment()
    said = f"TMPDIR={elsewhere} cannot be written to on this node: it is unset"
    for log in (swarm_paths().endpoint_log, swarm_paths().slurm_logs / "replica-0.log"):
        assert said in log.read_text()
    done = ended(JobService().submit(request(tmp_path / "job", 5)))
    assert done.status is JobStatus.SUCCEEDED


def test_a_long_temporary_folder_is_told(up: Up, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    up(replicas=1, backend={"env": {"TMPDIR": str(long)}})
    assert engine_environment()["TMPDIR"] == str(long)
    assert (
        "sockets of engines may not fit" in (swarm_paths().slurm_logs / "replica-0.log").read_text()
    )


def test_the_nodes_own_python_is_kept_from_that_of_the_swarm(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    packages = tmp_path / f"base/lib/python3.{sys.version_info.minor}/site-packages"
    packages.mkdir(parents=True)
    (packages / "aiohttp.py").write_text("raise ImportError('the one of the user')")
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "base"))
    up(replicas=1, backend={"venv_path": sys.prefix, "env": {"MINE": "1"}})
    seen = engine_environment()
    assert seen["PYTHONNOUSERSITE"] == seen["MINE"] == "1"
    assert not {"PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE"} & seen.keys()
    asked = request(tmp_path / "job", 5)
    assert ended(JobService().submit(asked)).status is JobStatus.SUCCEEDED


def test_on_nodes_of_another_locale_the_same_is_asked_and_found_again(
    up: Up, tmp_path: Path
) -> None:
    record, folder = tmp_path / "asked.jsonl", tmp_path / "là"
    env = latin1(tmp_path)
    up(replicas=1, backend={"env": env}, engine_options={"record": str(record)})
    assert engine_environment()["LC_ALL"] == env["LC_ALL"]
    for number, detached in enumerate((True, False)):
        asked = request(
            folder,
            5,
            job="domyn_swarm.jobs:TemplateJob",
            job_kwargs={"prompt": "Résumé → {{ prompt }} …"},
            output=str(folder / f"più-{number}.parquet"),
            resources=JobResources(detached=detached),
        )
        done = ended(JobService().submit(asked))
        assert done.status is JobStatus.SUCCEEDED, done.message
    prompts = [json.loads(line)["prompt"] for line in record.read_text("utf-8").splitlines()]
    assert sorted(prompts) == [f"Résumé → p{number} …" for number in range(5)]
