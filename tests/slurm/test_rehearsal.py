"""The rehearsal on a real cluster: what a node reports, what keeps it from that, what is left."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from command_line import PROGRAM
from domyn_swarm.backends import node_report
from domyn_swarm.backends.checks import Check
from domyn_swarm.backends.rehearsal import Rehearsal
from domyn_swarm.backends.slurm.script_contents import rehearsal_script
from domyn_swarm.config import load
from domyn_swarm.errors import ConfigError
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan
from domyn_swarm.services.doctor import examine
from domyn_swarm.swarm.launch import prepare
from other_hosts import need_namespaces
from patience import limit_s, scaled
from slurm.cluster import SlurmCluster
from slurm.swarms import jobs_of, taking_nothing, until
from slurm.test_looking_first import written


def rehearsed(path: Path, **wish: Any) -> tuple[dict[str, Check], list[str]]:
    """What was found on the node, and what was said meanwhile."""
    said: list[str] = []
    asked = Rehearsal(**{"gpus": False, "within_s": limit_s(), "say": said.append, **wish})
    checks = examine(path, asked).checks
    return {one.name: one for one in checks if one.name.split(":")[0] == "node"}, said


Planned = tuple[DeploymentPlan, DeploymentContext]


def planned(folder: Path, **keys: Any) -> Planned:
    launch = prepare(load(written(folder, **keys)).config)
    return launch.plan, launch.context


def rendered(swarm: Planned, *, gpus: bool) -> str:
    """The rehearsal's script."""
    plan, context = swarm
    folder = Path("/home/rehearsals/1")
    return rehearsal_script(plan, context, folder, gpus=gpus).render("batch.sh.j2")


def waiting(slurm: SlurmCluster) -> dict[str, str]:
    """The rehearsals that wait or run."""
    return jobs_of(slurm, "domyn-swarm")


def left(slurm: SlurmCluster, home: Path) -> tuple[set[str], list[Path]]:
    """What runs or waits, and what lies in the home."""
    return set(waiting(slurm)), list((home / "rehearsals").iterdir())


def test_a_node_reports_what_swarms_will_meet(
    slurm: SlurmCluster, tmp_path: Path, swarm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://somebody:hush-hush@proxy.example:3128")
    backend = {"env": {"TMPDIR": "/not there"}, "node_list": "n2"}
    found, _ = rehearsed(written(tmp_path, backend=backend))
    assert found["node"].detail.split(" within ")[0].endswith("ran on n2")
    wrong = {name for name, check in found.items() if check.status == "failed"}
    assert wrong == {"node: TMPDIR"}
    assert "/not there" in found["node: TMPDIR"].detail
    assert found["node: domyn-swarm"].detail.endswith(f"at {sys.executable}")
    for name in ("programs", "home", "locks", "from here", "to here", "clock", "open files"):
        assert found[f"node: {name}"].status == "ok", found[f"node: {name}"]
    assert found["node: proxies"].detail.startswith("https_proxy: ")
    assert not any("hush" in one.detail for one in found.values())
    until(lambda: left(slurm, swarm_home) == (set(), []))


def test_where_replicas_span_nodes_two_of_them_call_each_other(
    slurm: SlurmCluster, tmp_path: Path, swarm_home: Path
) -> None:
    found, _ = rehearsed(written(tmp_path))
    assert "node: other node" not in found

    path = written(tmp_path, gpus_per_replica=8, backend={"node_list": "n[2-3]"})
    found, _ = rehearsed(path)
    both = found["node: other node"]
    assert both.status == "ok", both
    assert both.detail == "n2 and n3 call each other at ports of ours"
    until(lambda: left(slurm, swarm_home) == (set(), []))


def test_a_second_node_that_does_not_see_the_home_says_so(
    slurm: SlurmCluster, tmp_path: Path, swarm_home: Path
) -> None:
    need_namespaces()
    path = written(tmp_path, gpus_per_replica=8, backend={"node_list": "n[2-3]"})
    there = slurm.network.inside("n3", slurm.folder)
    if not there:
        pytest.skip("its nodes share one file system: they have no namespaces")
    swarm_home.mkdir()
    subprocess.run([*there, "mount", "-t", "tmpfs", "none", str(swarm_home)], check=True)
    try:
        found, _ = rehearsed(path)
    finally:
        subprocess.run([*there, "umount", str(swarm_home)], check=True)
    assert found["node"].status == "ok"
    assert found["node: other node"].status == "failed"
    assert "No such file or directory" in found["node: other node"].detail


def test_gpus_are_asked_for_on_request_alone(
    slurm: SlurmCluster, tmp_path: Path, swarm_home: Path
) -> None:
    found, _ = rehearsed(written(tmp_path))
    assert "node: GPUs" not in found
    found, _ = rehearsed(written(tmp_path), gpus=True)
    assert found["node: GPUs"].status == "failed"  # they are pretended here
    assert "nvidia-smi" in found["node: GPUs"].detail


def test_it_asks_as_the_replicas_do(tmp_path: Path) -> None:
    """In the site's way, with the site's comment, and for GPUs on request alone."""
    gpus = {"gpus_per_replica": 2}
    typed = planned(tmp_path, **gpus, backend={"gres": "gpu:a100:{n}", "comment": "project=7"})
    assert "#SBATCH --gres=gpu:a100:2" in rendered(typed, gpus=True)
    assert "--gres" not in rendered(typed, gpus=False)
    assert '--comment="domyn-swarm/-/rehearsal project=7"' in rendered(typed, gpus=False)
    own = ["--reservation=x", "--gpus-per-node=a100:2"]
    by_preamble = planned(tmp_path, **gpus, backend={"gres": "none", "preamble": own})
    assert "--gpus-per-node" in rendered(by_preamble, gpus=True)
    assert "--gres" not in rendered(by_preamble, gpus=True)
    assert "--gpus-per-node" not in rendered(by_preamble, gpus=False)
    assert "--reservation=x" in rendered(by_preamble, gpus=False)


def test_the_shells_python_stays_out_as_it_does_of_replicas(tmp_path: Path) -> None:
    with_venv = rendered(planned(tmp_path, backend={"venv_path": "/venv"}), gpus=False)
    assert "PYTHONPATH" in with_venv
    assert "PYTHONPATH" not in rendered(planned(tmp_path), gpus=False)


def test_one_that_waits_for_too_long_says_what_for_and_is_taken_back(
    slurm: SlurmCluster, tmp_path: Path, swarm_home: Path
) -> None:
    path = written(tmp_path)
    with taking_nothing(slurm, ",".join(slurm.node_names)):
        waits_s = scaled(3)
        found, said = rehearsed(path, within_s=waits_s)
        assert set(found) == {"node"}
        assert found["node"].status == "warning"
        assert f"did not start within {waits_s:.0f} s: waits in the queue (" in found["node"].detail
        assert "waits in the queue (" in said[-1]
        until(lambda: left(slurm, swarm_home) == (set(), []))

        command = [PROGRAM, "doctor", "-c", str(path), "--rehearse"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as doctor:
            try:
                until(lambda: waiting(slurm))
                doctor.send_signal(signal.SIGINT)
                out, error = doctor.communicate(timeout=limit_s())
            finally:
                doctor.kill()
        assert doctor.returncode == 130, (out, error)
        assert b"Traceback" not in error
        until(lambda: left(slurm, swarm_home) == (set(), []))


def test_a_home_that_the_nodes_do_not_see_is_named(
    slurm: SlurmCluster, tmp_path: Path, swarm_home: Path
) -> None:
    need_namespaces()
    path = written(tmp_path)
    swarm_home.mkdir()
    inside = f"mount -t tmpfs none '{swarm_home}' && exec '{PROGRAM}' doctor -c '{path}' --json"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{inside} --rehearse"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert "which the node does not see" in checks["node"]["detail"]
    assert "a folder that the nodes share" in checks["node"]["fix"]


def test_a_node_without_our_programs_says_so(slurm: SlurmCluster, tmp_path: Path) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    python = tmp_path / "venv/bin/python"
    python.symlink_to(str(getattr(sys, "_base_executable", sys.executable)))
    (tmp_path / "venv/lib/python3/site-packages/domyn_swarm").mkdir(parents=True)
    found, _ = rehearsed(written(tmp_path, backend={"venv_path": str(tmp_path / "venv")}))
    assert found["node: domyn-swarm"].status == "failed"
    assert "not installed" in found["node: domyn-swarm"].detail
    assert "pip install domyn-swarm==" in str(found["node: domyn-swarm"].fix)
    assert found["node: programs"].status == "failed"
    assert "No module named" in found["node: programs"].detail


def test_a_rehearsal_that_is_not_made_is_not_left_out_silently(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    wrong = written(tmp_path, backend={"partition": "nowhere"})
    (unread := tmp_path / "unread.yaml").write_text("model: m\nbackend: nowhere\n")
    for path in (wrong, unread):
        found, _ = rehearsed(path)
        assert found["node"].status == "warning"
        assert "the rehearsal was skipped" in found["node"].detail


def test_a_rehearsal_needs_a_file() -> None:
    with pytest.raises(ConfigError, match="needs a configuration"):
        examine(None, Rehearsal(gpus=False, within_s=1.0, say=print))


def asked(folder: Path, **more: Any) -> Mapping[str, Any]:
    """A question such as a visit writes."""
    question = {
        "token": "t" * 32,
        "callers": [],
        "packages": ["domyn-swarm", "no-such"],
        "imports": ["json"],
        "engine_module": None,
        "runtime": None,
        "image": None,
        "gpus": False,
        "other_node": None,
        "address_program": None,
        "listens_s": limit_s(),
        **more,
    }
    (folder / "question.json").write_text(json.dumps(question))
    (folder / "held").touch()
    return question


def test_the_program_answers_nobody_without_the_token(tmp_path: Path) -> None:
    question = asked(tmp_path)
    program = str(node_report.__file__)
    with subprocess.Popen([sys.executable, "-I", program, str(tmp_path)]) as process:
        try:
            until((tmp_path / "report.json").exists)
            port = json.loads((tmp_path / "listening.json").read_text())["port"]
            for said in (b"", b"\n", b"x" * 1000 + b"\n", b"t" * 31 + b"\n", b"\xff\xfe\n"):
                with socket.create_connection(("127.0.0.1", port), limit_s()) as call:
                    call.sendall(said)
                    call.shutdown(socket.SHUT_WR)
                    with contextlib.suppress(ConnectionResetError):  # more was sent than is read
                        assert call.recv(64) == b""
            with socket.create_connection(("127.0.0.1", port), limit_s()) as call:
                call.sendall(question["token"].encode() + b"\n")
                assert float(call.makefile().readline()) > 0
            (tmp_path / "over").touch()
            assert process.wait(limit_s()) == 0
        finally:
            process.kill()
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["packages"]) == {"domyn-swarm", "no-such"}
    assert report["folder"]["lock"] == "granted"  # nobody holds it
    assert (tmp_path / "report.json").stat().st_mode & 0o077 == 0
