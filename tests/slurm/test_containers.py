"""Containers: what each runtime is told.

None of the runtimes can be installed here. A stand-in of the same name checks every argument
against what the runtime understands, writes it down, and runs the command without a container.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from process_list import running
from slurm.cluster import SlurmCluster
from slurm.swarms import Up, task

STAND_IN = """#!{python}
import json, os, re, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
known = {known!r}[name]
words, flags, rest = known["words"], [], list(arguments)
if name == "srun" and not any(one.startswith("--container") for one in rest):
    os.execv({srun!r}, [{srun!r}, *rest])
if rest[: len(words)] != words:
    sys.exit(f"{{name}}: expected {{words}}, not {{rest}}")
rest = rest[len(words):]
while rest and rest[0].startswith("-"):
    if not any(re.fullmatch(pattern, rest[0]) for pattern in known["flags"]):
        sys.exit(f"{{name}}: unknown option {{rest[0]}}")
    flags.append(rest.pop(0))
image = None
if known["image"]:
    image = rest.pop(0)
with open({record!r}, "a") as file:
    told = dict(name=name, flags=flags, image=image, command=rest, env=dict(os.environ))
    file.write(json.dumps(told) + chr(10))
if name == "srun":
    rest = [{srun!r}, *[one for one in flags if not one.startswith("--container")], *rest]
if name == "enroot":
    taken = [one[len("--env="):] for one in flags if one.startswith("--env=")]
    kept = (*taken, "PATH", "HOME", "TMPDIR", "PYTHONPATH")
    for variable in list(os.environ):
        if variable not in kept:
            del os.environ[variable]
os.execvp(rest[0], rest)
"""
MOUNT = r"/[^:]*:/[^:]*"
KNOWN = {
    "apptainer": {
        "words": ["exec"],
        "flags": ["--nv", f"--bind={MOUNT}", "--cleanenv=no", "--pwd=/a b"],
        "image": True,
    },
    "singularity": {
        "words": ["exec"],
        "flags": ["--nv", f"--bind={MOUNT}", "--cleanenv=no", "--pwd=/a b"],
        "image": True,
    },
    "enroot": {
        "words": ["start"],
        "flags": [f"--mount={MOUNT}", r"--env=\w+", "--pwd=/a b", "--cleanenv=no"],
        "image": True,
    },
    "srun": {
        "words": [],
        "flags": [
            *("--overlap", "--export=ALL", r"--cpus-per-task=\d+"),
            *("--nodes=1", "--ntasks=1", r"--nodelist=\w+"),
            *("--container-image=.*", f"--container-mounts={MOUNT}(?:,{MOUNT})*"),
        ],
        "image": False,
    },
}


@pytest.fixture
def runtimes(slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins on PATH, here and so on the nodes; the file that they write to."""
    record, folder = tmp_path / "told.jsonl", tmp_path / "bin"
    folder.mkdir()
    text = STAND_IN.format(
        python=sys.executable, known=KNOWN, record=str(record), srun=shutil.which("srun")
    )
    for name in KNOWN:
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:{slurm.env['PATH']}")
    return record


@pytest.mark.parametrize("container", ["apptainer", "singularity", "enroot", "pyxis"])
def test_a_replica_in_a_container(up: Up, runtimes: Path, tmp_path: Path, container: str) -> None:
    site = tmp_path / "site data"
    site.mkdir()
    more = [] if container == "pyxis" else ["--cleanenv=no", "--pwd=/a b"]
    backend = {
        "container": container,
        "container_args": more,
        "mounts": {str(site): "/data"},
        "time_limit": "01:00:00",
    }
    service = up(replicas=1, image="/images/vllm image.sif", backend=backend)
    [told] = [json.loads(line) for line in runtimes.read_text().splitlines()]
    root = service.status("demo").swarm_dir
    flags = " ".join(told["flags"])
    assert f"{root}:{root}" in flags
    assert f"{site}:/data" in flags
    assert [flag for flag in told["flags"] if flag in more] == more
    if container == "pyxis":
        assert "--container-image=/images/vllm image.sif" in told["flags"]
    else:
        assert told["image"] == "/images/vllm image.sif"
    assert told["command"][:2] == ["python3", f"{root}/scripts/watchdog.py"]
    spec = json.loads((Path(root) / "scripts/watchdog-0.json").read_text())
    assert spec["argv"][0] == "python3"  # the image's, not the submitter's


HOST = ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME")


@pytest.mark.parametrize("container", ["apptainer", "enroot", "pyxis"])
def test_what_is_the_nodes_stays_out(
    up: Up, runtimes: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    for name in HOST:
        monkeypatch.setenv(name, "/of/the/host")
    venv = str(Path(sys.prefix))  # else our own programs begin with them as well
    backend = {"container": container, "venv_path": venv}
    up(replicas=1, image="/images/sim.sif", backend=backend, cpus_per_task=4)
    [told] = [json.loads(line) for line in runtimes.read_text().splitlines()]
    assert not set(HOST) & told["env"].keys()
    assert told["env"]["PYTHONNOUSERSITE"] == "1"
    if container == "enroot":
        assert "--env=PYTHONNOUSERSITE" in told["flags"]
    if container == "pyxis":
        assert "--cpus-per-task=4" in told["flags"]


def sruns(slurm: SlurmCluster) -> list[list[str]]:
    """What tasks of this cluster have srun start, in its words."""
    found = []
    for one in running():
        with contextlib.suppress(psutil.Error):
            told = one.environ()
            mine = told.get("SLURM_CONF") == slurm.env["SLURM_CONF"] and "SLURM_JOB_ID" in told
            if mine and Path(one.cmdline()[0]).name == "srun":
                found.append(one.cmdline())
    return found


def check_cpus(commands: list[list[str]], cpus: int | None) -> None:
    """Without the option a step has all CPUs of its task, and a program in it may be bound to
    one.
    """
    wanted = [] if cpus is None else [f"--cpus-per-task={cpus}"]
    assert commands
    for words in commands:
        assert [one for one in words if one.startswith("--cpus-per-task")] == wanted


@pytest.mark.parametrize("cpus", [None, 4])
def test_the_step_of_a_container_has_all_cpus_of_its_task(
    up: Up, slurm: SlurmCluster, runtimes: Path, cpus: int | None
) -> None:
    backend = {"container": "pyxis"}
    up(replicas=1, image="/images/sim.sif", backend=backend, cpus_per_task=cpus)
    check_cpus(sruns(slurm), cpus)
    told = task(slurm, 0)
    step = slurm.run("scontrol", "--oneliner", "show", "step", f"{told}.0").stdout
    job = slurm.run("scontrol", "--oneliner", "show", "job", told).stdout
    given = [line for line in step.splitlines() if f"{told}.0 " in line]
    assert re.findall(r"\bCPUs=(\d+)", given[0]) == re.findall(r"\bNumCPUs=(\d+)", job), step


def test_a_replica_over_two_nodes_in_containers(
    up: Up, slurm: SlurmCluster, runtimes: Path
) -> None:
    backend = {"container": "apptainer"}
    up(replicas=1, gpus_per_replica=8, image="/images/sim.sif", backend=backend, cpus_per_task=4)
    check_cpus(sruns(slurm), 4)
    told = [json.loads(line) for line in runtimes.read_text().splitlines()]
    programs = sorted(Path(one["command"][1]).name for one in told)
    assert programs == ["follower.py", "watchdog.py"]
