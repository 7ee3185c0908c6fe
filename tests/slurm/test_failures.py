"""What fails on the real cluster is told with its cause, and holds no nodes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from domyn_swarm.errors import LaunchError, SubmissionUnknown, SubmitRejected
from domyn_swarm.model import SwarmPhase
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from patience import scaled
from slurm.cluster import SlurmCluster
from slurm.swarms import Up, jobs_of, node_of, observed, ready, taking_nothing, unanswered, until
from slurm.test_values import ENV_SERVER

HALF = """
import os, sys
if os.environ["SLURM_ARRAY_TASK_ID"] == "1":
    sys.exit("CUDA error: no kernel image is available for execution on the device")
server = [sys.executable, "-c", os.environ["SERVER"], "/dev/null", "x", sys.argv[1]]
os.execv(sys.executable, server)
"""


def test_a_task_that_fails_for_ever_is_told_of_and_the_others_serve(
    up: Up, slurm: SlurmCluster
) -> None:
    service = up(
        engine="command",
        gpus_per_replica=0,
        env={"SERVER": ENV_SERVER},
        engine_options={"argv": ["{python}", "-c", HALF, "{port}"]},
        watchdog={
            "probe_interval": 1,
            "kill_grace_seconds": 3,
            "max_restarts": 1,  # it has failed before it is tried on another node
            "restart_backoff_initial": 0.2,
            "restart_backoff_max": 0.2,
        },
    )
    until(lambda: sorted(jobs_of(slurm).values()) == ["RUNNING", "RUNNING"])  # its task has ended
    until(lambda: service.status("demo").replicas[1].state == "failed")
    seen = service.status("demo")
    assert (seen.observed, seen.replicas_ready) == ("ready", 1)
    assert seen.replicas[1].restarts == 1
    time.sleep(scaled(5))  # the endpoint looks every two seconds, and submits no successor
    told = slurm.run("squeue", "-h", "-r", "--states=all", "-o", "%i %j").stdout.splitlines()
    arrays = {line.split("_")[0] for line in told if " demo-replicas-" in line}
    assert len(arrays & {one.split("_")[0] for one in jobs_of(slurm)}) == 1
    assert len(jobs_of(slurm)) == 2


BROKEN_NODE = """
import os, sys
if os.environ["SLURMD_NODENAME"] == "n2":
    sys.exit("RuntimeError: CUDA error: unspecified launch failure")
server = [sys.executable, "-c", os.environ["SERVER"], "/dev/null", "x", sys.argv[1]]
os.execv(sys.executable, server)
"""


NO_PYTHON = """\
#!/bin/bash
{% for option in sbatch -%}
#SBATCH {{ option }}
{% endfor -%}
{% for name, value in env.items() -%}
export {{ name }}={{ value | quote }}
{% endfor -%}
{% if "replica" in command[2] -%}
if [ "$SLURMD_NODENAME" = n2 ]; then exec /nowhere/bin/python; fi
{% endif -%}
exec {{ command | map("quote") | join(" ") }}
"""


@pytest.mark.parametrize("what", ["engine", "python"])
def test_a_replica_that_does_not_start_on_one_node_serves_on_another(
    up: Up, slurm: SlurmCluster, tmp_path: Path, what: str
) -> None:
    template = tmp_path / "site.j2"
    template.write_text(NO_PYTHON)
    broken_engine = ["{python}", "-c", BROKEN_NODE, "{port}"]
    server = ["{python}", "-c", ENV_SERVER, "/dev/null", "x", "{port}"]
    with taking_nothing(slurm, "n4"):  # so that n2 is tried
        service = up(
            replicas=3,
            gpus_per_replica=4,  # a node each
            engine="command",
            env={"SERVER": ENV_SERVER},
            engine_options={"argv": broken_engine if what == "engine" else server},
            backend={"template_path": str(template)} if what == "python" else {},
            watchdog={"probe_interval": 1, "kill_grace_seconds": 3, "restart_backoff_initial": 0.2},
            wait=False,
        )
        until(lambda: "PENDING" not in jobs_of(slurm).values())
    [broken] = until(lambda: service.status("demo").left_out)
    assert broken.node == "n2"
    assert broken.replica == 1
    assert broken.reason
    until(lambda: ready() == 3)
    assert "n2" not in {node_of(slurm, one) for one in jobs_of(slurm) if "_" in one}


TEMPLATE = """\
#!/bin/bash
{% for option in sbatch -%}
#SBATCH {{ option }}
{% endfor -%}
{% for name, value in env.items() -%}
export {{ name }}={{ value | quote }}
{% endfor -%}
{% if "endpoint" in command[2] -%}
sleep {{ 600 }}
{% endif -%}
exec {{ command | map("quote") | join(" ") }}
"""


def test_an_endpoint_that_never_listens_ends_the_waiting(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    """By a template of the site's, whose endpoint comes to nothing."""
    template = tmp_path / "site.j2"
    template.write_text(TEMPLATE)
    backend = {
        "template_path": str(template),
        "endpoint": {"mem": "1000M", "cpus_per_task": 1, "timeout_s": 3},
    }
    with pytest.raises(LaunchError, match="endpoint's job has run for 3 s and does not listen"):
        up(backend=backend)
    assert jobs_of(slurm) == {}


def test_replicas_that_slurm_kills_for_their_memory_say_so(up: Up, slurm: SlurmCluster) -> None:
    greedy = "import time; kept = b'x' * 900_000_000; time.sleep(600)"
    options = {"argv": ["{python}", "-c", greedy, "{port}"]}
    with pytest.raises(LaunchError, match=r"[Ee]xceeded .*memory limit"):
        up(
            engine="command",
            replicas=1,
            gpus_per_replica=0,
            memory_gb=0.5,
            engine_options=options,
        )
    assert jobs_of(slurm) == {}


def test_replicas_that_an_admin_cancels_end_the_waiting(up: Up, slurm: SlurmCluster) -> None:
    up(wait=False, replicas=1, engine_options={"start_s": 600})
    until(lambda: "PENDING" not in jobs_of(slurm).values())
    slurm.run("scancel", *(one for one in jobs_of(slurm) if "_" in one))
    until(lambda: observed() == "failed")


def test_what_slurm_refuses_is_one_clear_error(up: Up, slurm: SlurmCluster) -> None:
    with pytest.raises(SubmitRejected, match="Invalid partition") as refused:
        up(backend={"partition": "nowhere"})
    assert "Slurm refused endpoint.sh" in refused.value.message
    assert "backend.partition and backend.endpoint.partition" in refused.value.hint
    assert jobs_of(slurm) == {}
    assert SwarmService().status("demo").phase is SwarmPhase.STOPPED


def test_replicas_that_slurm_takes_without_an_answer_are_not_forgotten(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    with (
        unanswered(tmp_path, "replicas.sh") as taken,
        pytest.raises(SubmissionUnknown, match="Socket timed out") as caught,
    ):
        up()
    assert "may yet accept" in caught.value.hint
    assert "domyn-swarm down demo" in caught.value.hint
    assert jobs_of(slurm) == {}
    service = SwarmService()
    assert service.status("demo").phase is SwarmPhase.FAILED  # nobody writes it off
    [held] = service.down(["demo"])
    assert not held.stopped
    taken.touch()
    until(lambda: len(jobs_of(slurm)) == 2)
    [ended] = service.down(["demo"])
    assert ended.stopped, ended.error
    assert jobs_of(slurm) == {}
    assert SwarmStore.open().swarm("demo").phase is SwarmPhase.STOPPED
