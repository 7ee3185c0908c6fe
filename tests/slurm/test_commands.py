"""What Slurm's commands are asked, and what is believed of what they print. No cluster: scripts of
the commands' names stand on PATH.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domyn_swarm.backends.slurm.cluster import OnCluster
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.ending import WouldTake
from domyn_swarm.backends.slurm.slurm_rehearsal import would_take_checks
from domyn_swarm.errors import PlatformUnavailable, SubmitRejected
from domyn_swarm.model import Location, Reach

Commands = Callable[..., Path]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Puts scripts on PATH, by their names; returns the file with what they were called with."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(**scripts: str) -> Path:
        for name, body in scripts.items():
            program = folder / name
            program.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{body}\n')
            program.chmod(0o755)
        return log

    return put


CONFIG = "echo 'ClusterName             = Alps'"


@pytest.mark.parametrize(
    "printed",
    [
        "17",
        "17;alps",
        "*** Welcome, 3 messages ***\n17",
        "17\nYour job was charged to account 4711",
        "  17;alps  \nsubmitted at 12:00",
    ],
)
def test_the_id_is_the_line_that_is_one(commands: Commands, tmp_path: Path, printed: str) -> None:
    commands(sbatch=f"cat <<'END'\n{printed}\nEND", scontrol=CONFIG)
    assert Slurm().submit(tmp_path / "job.sh") == "17"


@pytest.mark.parametrize("printed", ["", "Submitted batch job seventeen", "17 18", "-17", "17;"])
def test_without_an_id_it_is_unknown_what_was_submitted(
    commands: Commands, tmp_path: Path, printed: str
) -> None:
    commands(sbatch=f"echo '{printed}'")
    with pytest.raises(PlatformUnavailable, match=r"no job id for job\.sh") as caught:
        Slurm().submit(tmp_path / "job.sh")
    assert "squeue" in caught.value.hint


def test_what_sbatch_warns_of_is_shown(
    commands: Commands, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warned = "can't honor --ntasks-per-node set to 4"
    said = "sbatch: Job 9 to start at 2026-11-30T12:00:00 using 1 processors on nodes n1"
    commands(
        sbatch=f'echo "sbatch: warning: {warned}\nsbatch: warning: {warned}\n{said}" >&2; echo 9'
    )
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --partition=main\n")
    tested = Slurm().test(script)
    assert tested == (said.removeprefix("sbatch: "), (warned,), 0)
    script.write_text("#!/bin/bash\n#SBATCH --partition=main,whole\n")
    assert Slurm().test(script).said.endswith("nodes n1 (partitions tried: main,whole)")
    assert Slurm().submit(script) == "9"
    assert [f"Slurm accepted job.sh with a warning: {warned}"] == [
        one.getMessage() for one in caplog.records
    ]
    checks = [*would_take_checks("replicas.sh", tested)]
    assert [one.status for one in checks] == ["ok", "warning"]
    assert warned in checks[1].detail


def test_a_script_that_waits_for_nodes_is_no_failure() -> None:
    said = "allocation failure: Requested node configuration is not available"
    [check] = would_take_checks("replicas.sh", WouldTake(said, (), 3))
    assert check.status == "warning"
    assert check.detail.startswith("replicas.sh: it can be submitted, and waits: 3 nodes are")
    assert "sinfo -R" in str(check.fix)


def test_a_job_that_was_passed_on_to_a_cluster_that_is_not_asked_is_taken_back(
    commands: Commands, tmp_path: Path
) -> None:
    calls = commands(sbatch="echo '17;other'", scontrol=CONFIG, scancel="true")
    with pytest.raises(SubmitRejected, match="on to the cluster other") as caught:
        Slurm().submit(tmp_path / "job.sh")
    assert "SLURM_CLUSTERS=other" in caught.value.hint
    assert "scancel --quiet --clusters=other 17" in calls.read_text()
    commands(scancel="echo 'Unable to find cluster other' >&2; exit 1")
    with pytest.raises(PlatformUnavailable, match="other as job 17") as stuck:
        Slurm().submit(tmp_path / "job.sh")
    assert "scancel 17" in stuck.value.hint


REPEATS = "echo 'scancel: Job is in transitional state, retrying' >&2\n"


@pytest.mark.parametrize("after", ["exec sleep 600", "exit 0"])
def test_what_waits_is_cancelled_first_and_a_signal_is_not_repeated(
    commands: Commands, after: str
) -> None:
    """Of an array of which others wait, scancel sends a signal again and again."""
    queue = "5_0|RUNNING|None|n1|N/A|c\n5_1|RUNNING|None|n1|N/A|c\n5_2|PENDING|x||N/A|c\n"
    verbose = f'case "$*" in *--verbose*) {2 * REPEATS}{after};; esac'
    calls = commands(squeue=f"printf '{queue}'", scancel=verbose)
    Slurm().cancel(["5_0", "5_1", "5_2", "5_1"], signal="TERM")
    commands(scancel="exit 0")
    Slurm().cancel(["5_0", "5_2"])
    asked = [line for line in calls.read_text().splitlines() if line.startswith("scancel")]
    assert asked == [
        "scancel --quiet 5_2",
        "scancel --verbose --signal=TERM --batch 5_0 5_1",
        "scancel --quiet 5_0 5_2",
    ]


def test_a_controller_that_is_away_gets_no_signal_and_it_is_said(commands: Commands) -> None:
    away = "echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1"
    commands(squeue="printf '5_0|RUNNING|None|n1|N/A|c\n'", scancel=away)
    with pytest.raises(PlatformUnavailable, match=r"scancel: .*Unable to contact"):
        Slurm().cancel(["5_0"], signal="TERM")


def test_signals_to_many_are_sent_a_few_at_once(commands: Commands) -> None:
    """scancel has ten threads, and what it repeats keeps them."""
    queue = "".join(f"5_{index}|RUNNING|None|n1|N/A|c\n" for index in range(20))
    calls = commands(squeue=f"printf '{queue}'", scancel="exit 0")
    Slurm().cancel([f"5_{index}" for index in range(20)], signal="TERM")
    asked = [line for line in calls.read_text().splitlines() if line.startswith("scancel")]
    assert [line.count(" 5_") for line in asked] == [8, 8, 4]


def test_what_another_process_has_just_submitted_is_not_unknown(commands: Commands) -> None:
    """The look of a moment ago does not show it."""
    calls = commands(squeue="printf '5|RUNNING|None|n1|N/A|c|a\n'", sacct="exit 1")
    slurm = Slurm()
    assert [*slurm.queue()] == ["5"]
    commands(squeue="printf '5|RUNNING|None|n1|N/A|c|a\n6|PENDING|x||N/A|c|b\n'")
    assert [*slurm.jobs(["6"])] == ["6"]
    for _ in range(20):  # what is not there is not looked for each time
        assert slurm.jobs(["7"]) == {}
    assert calls.read_text().count("squeue") <= 4


def test_the_queue_is_asked_for_the_user_who_runs_this(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = commands(squeue="true")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    Slurm().queue()
    assert f"--user {os.getuid()} " in calls.read_text()
    assert "somebody-else" not in calls.read_text()


def test_the_name_of_the_cluster_is_asked_for_once(commands: Commands) -> None:
    calls = commands(scontrol=CONFIG)
    slurm = Slurm()
    assert [slurm.cluster(), slurm.cluster()] == ["alps", "alps"]
    assert calls.read_text() == "scontrol show config\n"


def test_a_cluster_without_a_name_is_not_asked_again_and_again(commands: Commands) -> None:
    calls = commands(scontrol="echo 'Only one cluster can be used at a time' >&2; exit 1")
    slurm = Slurm()
    for _ in range(3):
        with pytest.raises(PlatformUnavailable, match="Only one cluster"):
            slurm.cluster()
    assert calls.read_text() == "scontrol show config\n"


def test_jobs_of_another_cluster_are_elsewhere(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Platform(OnCluster):
        def __init__(self) -> None:
            self._slurm = Slurm()

    commands(scontrol=CONFIG)
    platform = Platform()
    here = platform.location({})
    assert (here.kind, here.name) == ("cluster", "alps")
    assert platform.reach(here) is platform.reach(None) is Reach.HERE
    assert platform.reach(Location(kind="cluster", name="todi")) is Reach.ELSEWHERE
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Platform().reach(here) is Reach.ELSEWHERE  # this machine has no Slurm


@pytest.mark.parametrize(
    ("scontrol", "whole"),
    [
        ("echo PartitionName=main OverSubscribe=EXCLUSIVE", True),
        ("echo PartitionName=main OverSubscribe=NO", False),
        ("echo Partition main not found; exit 1", False),  # `sbatch` says what is wrong with it
        ("echo 'slurm_load_partitions error: Protocol authentication error' >&2; exit 1", None),
        ("exit 1", None),
    ],
)
def test_a_partition_that_is_not_shown_is_not_taken_for_a_shared_one(
    commands: Commands, scontrol: str, *, whole: bool | None
) -> None:
    """Else replicas of whole nodes would be submitted as those that share them."""
    commands(scontrol=scontrol)
    if whole is not None:
        assert Slurm().gives_whole_nodes("main") is whole
        return
    with pytest.raises(PlatformUnavailable, match="does not show the partition main"):
        Slurm().gives_whole_nodes("main")
