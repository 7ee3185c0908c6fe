"""Every script that is rendered, run by a real bash: what it starts gets what the plan holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domyn_swarm import engines
from domyn_swarm.backends.protocols import ComputeSpec
from domyn_swarm.backends.slurm import script_contents, script_files
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.config.backends import SlurmConfig
from domyn_swarm.paths import SwarmPaths, private_dir, write_private
from domyn_swarm.planning.builder import PlanBuilder
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan, JobResources
from patience import limit_s

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs", "Cc")), max_size=30)
LINES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30)
NAMES = st.from_regex(r"ODD_[A-Z0-9_]{1,8}", fullmatch=True)
ENVIRONMENTS = st.dictionaries(NAMES, LINES, max_size=3)
RECORD = """#!{python}
import json, os, sys
odd = {{name: value for name, value in os.environ.items() if name.startswith("ODD_")}}
with open({record!r}, "w") as file:
    json.dump({{"argv": sys.argv[1:], "env": odd}}, file)
"""


class Node:
    """A virtual environment whose interpreter writes down how it was started."""

    def __init__(self, root: Path) -> None:
        self.venv, self._record = root / "a 'venv' $(x)", root / "record"
        python = self.venv / "bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(RECORD.format(python=sys.executable, record=str(self._record)))
        python.chmod(0o755)

    def run(self, script: str) -> dict[str, Any]:
        """What the script started."""
        self._record.unlink(missing_ok=True)
        subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=limit_s())
        return dict(json.loads(self._record.read_text()))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("a node"))


def planned(node: Node, home: Path, **keys: Any) -> tuple[DeploymentPlan, DeploymentContext]:
    backend = {
        "type": "slurm",
        "partition": "a b",
        "container": "none",
        "venv_path": str(node.venv),
        **keys.pop("backend", {}),
    }
    fields = {"model": "m", "engine": "sim", "home_directory": home, "backend": backend, **keys}
    plan = PlanBuilder(DomynLLMSwarmConfig.model_validate(fields), "demo").build()
    context = DeploymentContext(
        tag="demo.1",
        serving_spec=engines.get(plan.engine).serving_spec(plan),
        timeout_s=1,
        interpreter=sys.executable,
    )
    return plan, context


SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(
    place=TEXT.filter(lambda text: text.strip("./ ") and "/" not in text and text.isprintable()),
    env=ENVIRONMENTS,
)
def test_the_scripts_of_a_swarm(node: Node, place: str, env: dict[str, str]) -> None:
    home = Path("/tmp") / place
    plan, context = planned(node, home, backend={"env": env})
    paths = SwarmPaths.of(plan.home_directory, plan.name)
    scripts = script_files.render_scripts(plan, context, paths, 1)
    started = {name: node.run(text) for name, text in scripts.items()}
    module = "domyn_swarm.backends.slurm"
    assert started == {
        "endpoint.sh": {"argv": ["-m", f"{module}.endpoint_task", str(paths.root)], "env": env},
        "replicas.sh": {"argv": ["-m", f"{module}.replica_task", str(paths.root), "1"], "env": env},
    }


def test_what_the_site_says_of_gpus_is_for_replicas_alone(node: Node, tmp_path: Path) -> None:
    options = ("--gres=gpu:a100:1", "-G 1", "--mem-per-g=4G", "--tres-per-task gres/gpu:1")
    gpus, other = [f"#SBATCH {one}" for one in options], "#SBATCH --reservation=x"
    plan, context = planned(node, tmp_path, backend={"preamble": [*gpus, other]})
    paths = SwarmPaths.of(plan.home_directory, plan.name)
    scripts = script_files.render_scripts(plan, context, paths, 1)
    replicas, endpoint = (scripts[name].splitlines() for name in ("replicas.sh", "endpoint.sh"))
    assert [line for line in (*gpus, other) if line in replicas] == [*gpus, other]
    assert [line for line in (*gpus, other) if line in endpoint] == [other]


def options(script: str) -> dict[str, str]:
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH --")]
    return {name: value for name, _, value in (line[10:].partition("=") for line in lines)}


Asked = tuple[str | None, str | None, bool]  # GRES, memory, whole nodes


@pytest.mark.parametrize(
    ("backend", "per_task", "expected"),
    [
        ({}, 1, ("gpu:2", None, False)),
        ({"gres": "gpu:a100:{n}"}, 1, ("gpu:a100:2", None, False)),
        ({"gres": "gpu:a100:{n}", "packing": "node"}, 2, ("gpu:a100:4", "0", True)),
        ({"gres": "gpu:{n},shard:1"}, 1, ("gpu:2,shard:1", None, False)),
        ({"gres": "none"}, 2, (None, "0", True)),
        ({"gres": "none", "mem": None}, 2, (None, None, True)),
        ({"gres": "none", "mem": "480G"}, 2, (None, "480G", True)),
        ({"gres": "none", "preamble": ["--gpus-per-node=2"]}, 1, (None, None, False)),
        ({"gres": "none", "packing": "replica"}, 1, (None, None, False)),
    ],
)
def test_how_a_site_is_asked_for_gpus_and_memory(
    node: Node, tmp_path: Path, backend: dict[str, Any], per_task: int, expected: Asked
) -> None:
    keys = {"gpus_per_replica": 2, "gpus_per_node": 4, "replicas": 2, "backend": backend}
    plan, context = planned(node, tmp_path, **keys)
    assert script_contents.replicas_per_task(plan, whole_nodes=False) == per_task
    paths = SwarmPaths.of(plan.home_directory, plan.name)
    asked = options(
        script_contents.replica_script(plan, context, paths, per_task).render("batch.sh.j2")
    )
    assert (asked.get("gres"), asked.get("mem"), "exclusive" in asked) == expected


@pytest.mark.parametrize("gpus", [3, 4, 8])
def test_a_replica_whose_gpus_nobody_binds_is_alone_on_its_nodes(
    node: Node, tmp_path: Path, gpus: int
) -> None:
    keys = {"gpus_per_replica": gpus, "gpus_per_node": 4, "backend": {"gres": "none"}}
    plan, context = planned(node, tmp_path, **keys)
    assert script_contents.replicas_per_task(plan, whole_nodes=False) == 1
    paths = SwarmPaths.of(plan.home_directory, plan.name)
    asked = options(script_contents.replica_script(plan, context, paths, 1).render("batch.sh.j2"))
    assert "exclusive" in asked


@pytest.mark.parametrize("wrong", ["", "gpu:4", "gpu:{n}:{n}", "gpu:{n}\n", "None"])
def test_a_template_without_the_number_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"with \{n\} for their number, or none"):
        SlurmConfig(partition="p", gres=wrong)


@SLOW
@given(words=st.lists(LINES, max_size=3), env=ENVIRONMENTS, limit_s=st.none() | st.just(90.0))
def test_the_scripts_of_a_job(
    node: Node,
    tmp_path_factory: pytest.TempPathFactory,
    words: list[str],
    env: dict[str, str],
    limit_s: float | None,
) -> None:
    job_dir = tmp_path_factory.mktemp("a 'job' $(x)")
    (job_dir / "logs").mkdir()
    spec = ComputeSpec(
        job_id="1",
        swarm="demo",
        tag="demo.1",
        argv=(sys.executable, *words),
        env=env,
        cwd="/a b",
        job_dir=str(job_dir),
        resources=JobResources(time_limit_s=limit_s),
        platform_options={"type": "slurm", "partition": "p", "venv_path": str(node.venv)},
    )
    limit = [] if limit_s is None else ["--time-limit=90"]
    wrapper = ["-m", "domyn_swarm.backends.exit_wrapper", *limit, f"{job_dir}/exit.json", "/a b"]
    expected = {"argv": [*wrapper, "--", str(node.venv / "bin/python"), *words], "env": env}
    assert node.run(script_contents.job_script(spec).render("batch.sh.j2")) == expected
    assert node.run(script_contents.step_script(spec).render("step.sh.j2")) == expected


@pytest.mark.parametrize(
    ("limit_s", "minutes", "warned_s"),
    [(3600.0, 60, 120), (90.0, 2, 30), (60.0, 1, 15), (None, "36:00:00", 120)],
)
def test_a_job_asks_slurm_for_whole_minutes_and_is_warned_before_they_end(
    tmp_path: Path, limit_s: float | None, minutes: int | str, warned_s: int
) -> None:
    spec = ComputeSpec(
        job_id="1",
        swarm="demo",
        tag="demo.1",
        argv=("true",),
        cwd="/",
        job_dir=str(tmp_path),
        resources=JobResources(time_limit_s=limit_s),
        platform_options={"type": "slurm", "partition": "p", "time_limit": "36:00:00"},
    )
    lines = script_contents.job_script(spec).render("batch.sh.j2").splitlines()
    assert f"#SBATCH --time={minutes}" in lines
    assert f"#SBATCH --signal=B:USR1@{warned_s}" in lines


@pytest.mark.parametrize(
    ("keys", "limit_s", "lines"),
    [
        ({}, None, {"time=12:00:00", "time-min=0:06:00", "signal=B:USR1@90"}),
        ({"endpoint": {"wall_time": "1-0"}}, None, {"time=1-0", "signal=B:USR1@120"}),
        ({}, 7200.0, {"time=120", "signal=B:USR1@120"}),
    ],
)
def test_a_job_may_start_with_less_time_where_nothing_says_how_much_it_gets(
    tmp_path: Path, keys: dict[str, Any], limit_s: float | None, lines: set[str]
) -> None:
    limits = {"min": "0:06:00", "max": "12:00:00"}
    spec = ComputeSpec(
        job_id="1",
        swarm="demo",
        tag="demo.1",
        argv=("true",),
        cwd="/",
        job_dir=str(tmp_path),
        resources=JobResources(time_limit_s=limit_s),
        platform_options={"type": "slurm", "partition": ["a", "b"], "time_limit": limits, **keys},
    )
    script = script_contents.job_script(spec).render("batch.sh.j2")
    found = {one.removeprefix("#SBATCH --") for one in script.splitlines()}
    assert {one for one in found if one.startswith(("time", "signal"))} == lines
    assert "partition=a,b" in found


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(words=st.lists(LINES, max_size=3), env=ENVIRONMENTS)
def test_what_a_watchdog_is_told_reaches_the_engine(
    node: Node,
    tmp_path_factory: pytest.TempPathFactory,
    words: list[str],
    env: dict[str, str],
) -> None:
    options = {"argv": [str(node.venv / "bin/python"), *words], "fixed_port": True}
    watchdog = {"restart_policy": "never", "probe_interval": 0.2}
    home = tmp_path_factory.mktemp("home 'of' $(x)")
    plan, context = planned(
        node, home, engine="command", engine_options=options, env=env, watchdog=watchdog
    )
    paths = SwarmPaths.of(plan.home_directory, plan.name)
    for key in (paths.api_key, paths.collector_key):
        write_private(key, "key")
    private_dir(paths.scripts)
    script_files.write_watchdog_specs(plan, context, paths, [0], 1)
    told = json.loads(paths.watchdog_spec(0).read_text())
    told["final_report_seconds"] = 0  # there is no collector
    paths.watchdog_spec(0).write_text(json.dumps(told))
    script_files.copy_watchdog(paths.watchdog_program)
    ended = subprocess.run(
        [sys.executable, str(paths.watchdog_program), str(paths.watchdog_spec(0)), "127.0.0.1"],
        capture_output=True,
        timeout=limit_s(),
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stderr
    record = json.loads((node.venv.parent / "record").read_text())
    assert record == {"argv": words, "env": env}
