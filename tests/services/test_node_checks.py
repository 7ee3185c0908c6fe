"""What a node's report comes to, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from domyn_swarm import __version__
from domyn_swarm.backends.node_checks import Visited, node_checks
from domyn_swarm.backends.rehearsal import Call
from domyn_swarm.planning.plan import DeploymentPlan
from local_swarms import launch_of

HEALTHY: dict[str, Any] = {
    "node": "n1",
    "python": "3.11.7",
    "executable": "/venv/bin/python",
    "packages": {"domyn-swarm": __version__, "torch": "2.9"},
    "imports": {"error": None, "seconds": 0.5},
    "engine": True,
    "folder": {"write": None, "link": None, "lock": "refused"},
    "own_name": {"name": "n1", "addresses": ["10.0.0.1"], "error": None},
    "caller": {"host": "login", "error": None},
    "temporary": {"path": "/tmp", "error": None, "free_gb": 50.0},
    "shared_memory_gb": 200.0,
    "encoding": "UTF-8",
    "open_files": 131072,
    "runtime": {"error": None, "version": "apptainer version 1.3", "image": None},
    "gpus": {"gpus": ["NVIDIA H200, 570.1, 143771 MiB"], "error": None},
    "proxies": [],
    "variables": [],
    "other": None,
}
CALL = Call("10.0.0.1", None, 0.01)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DeploymentPlan:
    return launch_of().plan


def wrong(plan: DeploymentPlan, report: dict[str, Any], call: Call | None = CALL) -> dict[str, str]:
    checks = list(node_checks(plan, Visited({**HEALTHY, **report}, call, was_called=True)))
    assert all((one.status == "ok") == (one.fix is None) for one in checks)
    return {one.name: f"{one.status}: {one.detail}" for one in checks if one.status != "ok"}


def test_a_healthy_node(plan: DeploymentPlan) -> None:
    assert wrong(plan, {}) == {}
    assert wrong(plan, {"open_files": -1, "gpus": None, "encoding": "utf-8"}) == {}


@pytest.mark.parametrize(
    ("report", "name", "said"),
    [
        ({"packages": {"domyn-swarm": "0.0.1"}}, "domyn-swarm", "failed: 0.0.1 there"),
        ({"imports": {"error": "m: no", "seconds": 1.0}}, "programs", "failed: do not start: m"),
        ({"imports": {"error": None, "seconds": 40.0}}, "programs", "warning: a program of ours"),
        ({"engine": False}, "engine", "failed: sim is not installed for /venv"),
        (
            {"runtime": {"error": "enroot is not on PATH", "version": None, "image": None}},
            "container",
            "failed: enroot is not on PATH",
        ),
        (
            {"runtime": {"error": None, "version": "1", "image": "No such file"}},
            "image",
            "failed: None cannot be read there: No such file",
        ),
        ({"folder": {"write": "Read-only", "link": None, "lock": "x"}}, "home", "failed: cannot"),
        ({"folder": {"write": None, "link": "EPERM", "lock": "refused"}}, "links", "failed: a fil"),
        ({"folder": {"write": None, "link": None, "lock": "granted"}}, "locks", "warning: what is"),
        ({"folder": {"write": None, "link": None, "lock": "ENOSYS"}}, "locks", "failed: there are"),
        (
            {"temporary": {"path": "/t", "error": "No such", "free_gb": 0.0}},
            "TMPDIR",
            "failed: /t: No such",
        ),
        (
            {"temporary": {"path": "/" + "t" * 70, "error": None, "free_gb": 9.0}},
            "TMPDIR",
            "warning: /ttt",
        ),
        (
            {"temporary": {"path": "/tmp", "error": None, "free_gb": 0.1}},
            "TMPDIR",
            "warning: 0.1 GB",
        ),
        (
            {"own_name": {"name": "n1", "addresses": ["127.0.1.1"], "error": None}},
            "name",
            "warning: n1 is 127.0.1.1",
        ),
        (
            {"own_name": {"name": "n1", "addresses": [], "error": "unknown"}},
            "name",
            "warning: n1 is not known",
        ),
        ({"shared_memory_gb": 0.06}, "shared memory", "warning: /dev/shm: 0.1 GB free"),
        ({"shared_memory_gb": None}, "shared memory", "warning: /dev/shm: not there"),
        ({"encoding": "ANSI_X3.4-1968"}, "locale", "warning: the encoding is ANSI"),
        ({"open_files": 1024}, "open files", "warning: 1024 for a process"),
        ({"variables": ["PYTHONPATH"]}, "environment", "warning: PYTHONPATH may hide"),
        ({"gpus": {"gpus": [], "error": "no driver"}}, "GPUs", "failed: nvidia-smi: no driver"),
        ({"gpus": {"gpus": [], "error": None}}, "GPUs", "failed: 0 of the 1"),
    ],
)
def test_what_is_wrong_is_named_alone(
    plan: DeploymentPlan, report: dict[str, Any], name: str, said: str
) -> None:
    [(check, words)] = wrong(plan, report).items()
    assert check == f"node: {name}"
    assert words.startswith(said)


def test_calls_and_clocks(plan: DeploymentPlan) -> None:
    assert list(wrong(plan, {}, None)) == ["node: from here"]
    refused = wrong(plan, {}, Call("n1", "Name or service not known", None))
    assert refused == {"node: from here": "failed: n1 cannot be called: Name or service not known"}
    for ahead_s, said in ((60.0, "60 s ahead of"), (-7.2, "7 s behind")):
        assert said in wrong(plan, {}, Call("n1", None, ahead_s))["node: clock"]
    assert wrong(plan, {}, Call("n1", None, 4.0)) == {}


def seen(address: str, *, error: str | None = None, unknown: str | None = None) -> dict[str, Any]:
    """What one of two nodes found of the other."""
    return {"address": address, "error": error, "name": {"error": unknown}}


@pytest.mark.parametrize(
    ("there", "back", "said"),
    [
        (seen("10.0.0.2"), seen("10.0.0.1"), None),
        (seen("127.0.0.1", unknown="no"), seen("127.0.0.1"), None),
        (
            seen("10.0.0.2", error="Connection refused"),
            seen("10.0.0.1"),
            "failed: n1 cannot call n2 at 10.0.0.2: Connection refused",
        ),
        (
            seen("10.0.0.2"),
            seen("10.0.0.1", error="timed out"),
            "failed: n2 cannot call n1 at 10.0.0.1: timed out",
        ),
        (
            seen("10.0.0.2"),
            seen("10.0.0.1", unknown="Name or service not known"),
            "warning: n1 is not known by its name on n2: Name or service not known",
        ),
    ],
)
def test_two_nodes_reach_each_other_or_the_one_that_does_not_is_named(
    plan: DeploymentPlan, there: dict[str, Any], back: dict[str, Any], said: str | None
) -> None:
    other = {"error": None, "node": "n2", "there": there, "back": back}
    found = wrong(plan, {"other": other})
    assert found == ({} if said is None else {"node: other node": said})


def test_a_second_node_on_which_nothing_runs_is_named_with_what_srun_said(
    plan: DeploymentPlan,
) -> None:
    other = {"error": "srun: error: no", "node": None, "there": None, "back": None}
    [(name, said)] = wrong(plan, {"other": other}).items()
    assert name == "node: other node"
    assert said == "failed: our program did not run on a second node: srun: error: no"
