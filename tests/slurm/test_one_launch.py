"""What is planned once is what is shown, confirmed and launched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from audited import Audit, audited, audited_command
from domyn_swarm.backends.slurm import scripts
from domyn_swarm.config import dump_yaml
from domyn_swarm.errors import PlatformUnavailable
from domyn_swarm.services.requests import UpRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from slurm.cluster import SlurmCluster
from slurm.swarms import config, jobs_of, swarm_paths

IN_PYTHON = """
from pathlib import Path
from domyn_swarm import DomynLLMSwarm, DomynLLMSwarmConfig
with DomynLLMSwarm(DomynLLMSwarmConfig.read(Path(sys.argv[1]))):
    pass
"""
BEFORE_THE_FIRST_JOB = [
    "scontrol --all --oneliner show partition main",
    "scontrol show config",
    "sbatch --test-only endpoint.sh",
    "sbatch --test-only replicas.sh",
]


def written(folder: Path, name: str = "demo") -> Path:
    """A configuration with a template of its own, which is read for each script."""
    template = folder / f"{name}.j2"
    template.write_text((Path(scripts.__file__).parent / "templates/batch.sh.j2").read_text())
    path = folder / f"{name}.yaml"
    made = config(name=name, backend={"template_path": str(template)})
    path.write_text(dump_yaml(made))
    return path


def asked_before_submitting(audit: Audit) -> list[str]:
    """What the scheduler is asked until it is given the first job; paths by their names."""
    asked: list[str] = []
    for executable, *args in audit.commands:
        if executable == "sbatch" and "--test-only" not in args:
            break
        asked.append(" ".join([executable, *(Path(one).name for one in args)]))
    return asked


def submitted(audit: Audit) -> Sequence[Sequence[str]]:
    return [one for one in audit.commands if one[0] == "sbatch" and "--test-only" not in one]


def test_up_plans_once(slurm: SlurmCluster, tmp_path: Path) -> None:
    file = written(tmp_path)
    audit = audited_command("up", "-c", file, "--no-wait", folder=tmp_path)
    assert audit.times_opened(file) == 1
    assert audit.times_opened(file.with_suffix(".j2")) == 2  # two scripts, each rendered once
    assert asked_before_submitting(audit) == BEFORE_THE_FIRST_JOB
    assert len(submitted(audit)) == 2


def test_doctor_asks_a_site_each_question_once(slurm: SlurmCluster, tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(dump_yaml(config(backend={"partition": "main,whole", "qos": "normal"})))
    audit = audited_command("doctor", "-c", path, folder=tmp_path)
    asked = [" ".join(one) for one in audit.commands if one[0] in ("scontrol", "sacctmgr")]
    planned = [one for one in asked if "show partition " in one]  # the plan's: one is shared
    assert [one.split()[-1] for one in planned] == ["main"]
    assert len([one for one in asked if one.endswith("show partition")]) == 1
    about_nodes = [one for one in asked if "show node" in one]
    once = [one for one in asked if one not in about_nodes]
    assert "scontrol show config" in once
    assert sorted(once) == sorted(set(once))


def test_a_pool_plans_each_swarm_once(slurm: SlurmCluster, tmp_path: Path) -> None:
    files = [written(tmp_path, "one"), written(tmp_path, "two")]
    pool = tmp_path / "pool.yaml"
    entries = [f"  - {{config: {file.name}}}" for file in files]
    pool.write_text("\n".join(["name: fleet", "max_parallel: 1", "swarms:", *entries]) + "\n")
    audit = audited_command("pool", "up", pool, "--no-wait", folder=tmp_path)
    assert [audit.times_opened(file) for file in (pool, *files)] == [1, 1, 1]
    assert [audit.times_opened(file.with_suffix(".j2")) for file in files] == [2, 2]
    assert sum("partition" in command for command in audit.commands) == 2
    assert len(submitted(audit)) == 4


def test_a_swarm_in_python_plans_once(slurm: SlurmCluster, tmp_path: Path) -> None:
    file = written(tmp_path)
    audit = audited(IN_PYTHON, file, folder=tmp_path)
    assert audit.times_opened(file) == 1
    assert audit.times_opened(file.with_suffix(".j2")) == 2
    assert asked_before_submitting(audit) == BEFORE_THE_FIRST_JOB
    assert jobs_of(slurm) == {}


def test_what_is_changed_after_it_was_shown_is_not_launched(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    file = written(tmp_path)
    launch = SwarmService.prepare(UpRequest(config=file))
    shown = SwarmService.report(launch)
    file.write_text(file.read_text().replace("replicas: 2", "replicas: 3"))
    file.with_suffix(".j2").write_text("#!/bin/sh\nexit 1\n")
    SwarmService().up(launch, wait=False)
    paths = swarm_paths()
    assert {one.name: one.read_text() for one in paths.scripts.glob("*.sh")} == shown.scripts
    assert SwarmService().status("demo").replicas_wanted == 2
    assert "replicas: 2\n" in paths.config.read_text()


def test_scripts_that_the_scheduler_was_not_asked_about_are_shown_and_not_launched(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (silent := tmp_path / "bin").mkdir()
    (silent / "scontrol").write_text(
        "#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n"
    )
    (silent / "scontrol").chmod(0o755)
    with monkeypatch.context() as here:
        here.setenv("PATH", str(silent), prepend=":")
        launch = SwarmService.prepare(UpRequest(config=written(tmp_path)))
    assert set(SwarmService.report(launch).scripts) == {"endpoint.sh", "replicas.sh"}
    with pytest.raises(PlatformUnavailable, match="scontrol: Unable to contact"):
        SwarmService().up(launch)
    assert SwarmStore.open().swarms(include_stopped=True) == []
    assert jobs_of(slurm) == {}
