"""What watchdogs write of their replicas' time, and how it is read: with real programs, no
collector, kills, and files that were cut off.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm import watchdog_ledger
from domyn_swarm.backends import ledger_files
from domyn_swarm.backends.endpoint.use_meter import FollowedJob, UseMeter
from domyn_swarm.backends.gpu_time import Note, Use, Watch, classify
from domyn_swarm.backends.ledger_files import PlatformTimes, TaskRun, Written
from domyn_swarm.engines.vllm import START_PHASES
from domyn_swarm.model import JobProgress, ReplicaReport, ReplicaState, utc_now
from domyn_swarm.watchdog_ledger import Ledger, Phases, watts
from endpoint.bench import Bench
from patience import until

GPUS = 4
PHASES = [
    {"phase": "pull", "pattern": "Fetching 7 files"},
    {"phase": "load", "pattern": "Loading shard"},
]


def states(file: Path) -> list[tuple[str, str, bool | None]]:
    [watches] = ledger_files.read(file.parent).watches.values()
    return [(note.state, note.phase, note.busy) for one in watches for note in one.notes]


def test_without_a_collector_and_killed_a_watchdog_has_written_what_there_was(
    bench: Bench, tmp_path: Path
) -> None:
    file = tmp_path / "ledger" / "replica-0.jsonl"
    replica = bench.replica(ledger_file=str(file), gpus=GPUS, start_phases=PHASES)
    replica.tell("notes", "Fetching 7 files: 0%").tell("prints", 1).start()
    until(lambda: file.exists() and ("starting", "load", None) in states(file))
    (replica.control / "prints").unlink()
    until(lambda: ("ready", "load", False) in states(file))
    replica.tell("waiting", 3)
    until(lambda: states(file)[-1] == ("ready", "load", True))
    replica.tell("waiting", 0)
    until(lambda: states(file)[-1] == ("ready", "load", False))
    assert replica.process is not None
    os.kill(replica.process.pid, signal.SIGKILL)
    killed_at = time.time()
    replica.process.wait()
    until(lambda: time.time() > killed_at + 0.5)  # beyond the grain of all times

    replica.start()
    until(
        lambda: (
            len(ledger_files.read(file.parent).watches[0]) == 2 and states(file)[-1][0] == "ready"
        )
    )
    began = time.time()
    replica.process.send_signal(signal.SIGTERM)
    until(lambda: states(file)[-1][0] == "exited")
    [[first, second]] = ledger_files.read(file.parent).watches.values()
    assert first.alive_until <= killed_at + 0.1  # a clock's grain
    assert not first.over
    assert second.over
    # One allocation of a scheduler over both: every second has a name, that between them too
    runs = {"17_0": [(first.began - 5, began + 60)]}
    written = ledger_files.read(file.parent)._replace(
        tasks=[TaskRun("17_0", first.began, None, (0,))]
    )
    [own] = ledger_files.allocations(written, began + 90, PlatformTimes(runs)).values()
    assert [(one.begin, one.end, one.gpus) for one in own] == [(*runs["17_0"][0], GPUS)]
    spans = classify(own, (first, second), [], began + 90)
    assert sum(one.seconds for one in spans) == pytest.approx(65 + began - first.began)
    causes = [(one.use, one.cause) for one in spans]
    assert causes[0] == (Use.STARTING, "pull")
    assert (Use.DEAD, "killed") in causes
    assert causes[-1] == (Use.DRAINING, "ended")
    assert Use.UNKNOWN not in {one.use for one in spans}


def test_a_cut_off_file_loses_what_was_cut_off_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "replica-3.jsonl"
    for name in ("first", "second"):
        one = Ledger(str(file), GPUS, 60.0, name)
        one.note(state="starting", phase="load")
        one.note(state="ready", busy=True)
        one.used(100.0)
        one.note(busy=False)
    whole = file.read_bytes()
    wanted = ledger_files.read(tmp_path).watches[3]
    assert [len(one.notes) for one in wanted] == [3, 3]
    assert wanted[0].notes[-1].joules == 100.0
    for size in random.Random(1).sample(range(len(whole)), 60):
        file.write_bytes(whole[:size])
        found = ledger_files.read(tmp_path).watches[3]
        kept = [note for one in found for note in one.notes]
        assert kept == [note for one in wanted for note in one.notes][: len(kept)]
        later = Ledger(str(file), GPUS, 60.0, "third")
        later.note(state="ready", busy=True)  # goes on behind the line that was cut off
        [last] = [
            one for one in ledger_files.read(tmp_path).watches[3] if one.incarnation == "third"
        ]
        assert last.notes[-1].busy


def test_a_disk_that_takes_nothing_is_no_matter_and_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    folder.write_text("a file where the folder should be")
    one = Ledger(str(folder / "replica-0.jsonl"), GPUS, 60.0, "first")
    one.note(state="ready", busy=True)
    folder.unlink()
    one.note(busy=False)
    [[watch]] = ledger_files.read(folder).watches.values()
    assert [note.busy for note in watch.notes] == [False]
    assert ledger_files.gpu_seconds(folder, 0, watch.alive_until) == pytest.approx(
        GPUS * (watch.alive_until - watch.began)
    )
    assert ledger_files.gpu_seconds(tmp_path / "nothing", 0, time.time()) == 0


@pytest.mark.parametrize(
    ("tasks", "told", "expected"),
    [
        # The task's own word, where there is no accounting
        ([TaskRun("1_0", 100, 160, (0,))], ledger_files.NOTHING, [(100, 160)]),
        # The scheduler's counts before it
        (
            [TaskRun("1_0", 100, 160, (0,))],
            PlatformTimes({"1_0": [(99, 162)]}),
            [(99, 162)],
        ),
        # It knows of a run whose task never got as far as to write
        (
            [TaskRun("1_0", 100, 160, (0,))],
            PlatformTimes({"1_0": [(50, 60), (99, 162)]}),
            [(50, 60), (99, 162)],
        ),
        # Killed, and a successor came: until the last sign of life, and not until the successor
        (
            [TaskRun("1_0", 100, None, (0,)), TaskRun("2_0", 200, 260, (0,))],
            ledger_files.NOTHING,
            [(100, 100), (200, 260)],
        ),
        # It runs: the scheduler says so, or nobody says that it does not
        ([TaskRun("1_0", 100, None, (0,))], PlatformTimes({}, frozenset({"1_0"})), [(100, None)]),
        ([TaskRun("1_0", 100, None, (0,))], ledger_files.NOTHING, [(100, None)]),
        # Accounting has not heard of the end yet, which the queue and the task know
        (
            [TaskRun("1_0", 100, 160, (0,))],
            PlatformTimes({"1_0": [(100, None)]}, frozenset()),
            [(100, 160)],
        ),
        # It is being cleared up: the GPUs are held, whatever the task has said
        (
            [TaskRun("1_0", 100, 160, (0,))],
            PlatformTimes({"1_0": [(100, None)]}, frozenset({"1_0"})),
            [(100, None)],
        ),
        ([TaskRun("1_0", 100, None, (0,))], PlatformTimes({}, frozenset()), [(100, 100)]),
    ],
)
def test_who_is_believed_about_an_allocation(
    tasks: list[TaskRun], told: PlatformTimes, expected: list[tuple[float, float | None]]
) -> None:
    own = ledger_files.allocations(Written({}, {0: GPUS}, tasks), 500, told)[0]
    wanted = [one for one in expected if one[0] != one[1]]
    assert [(one.begin, one.end) for one in own] == wanted


def test_a_killed_task_held_its_gpus_until_its_watchdogs_last_sign_of_life() -> None:
    """Also where a watchdog seems to begin a little before its own task, by its clock's grain."""
    watches = (
        Watch("a", 99.99, 120.0, (Note(100, "ready", busy=True),)),
        Watch("b", 199.99, 220.0, (Note(200, "exited"),)),
    )
    tasks = [TaskRun("1_0", 100, None, (0,)), TaskRun("2_0", 200, 230, (0,))]
    own = ledger_files.allocations(Written({0: watches}, {0: GPUS}, tasks), 500)[0]
    assert [(one.begin, one.end) for one in own] == [(100, 120), (200, 230)]


def test_phases_of_a_start_by_what_engines_print(tmp_path: Path) -> None:
    """Lines as vLLM 0.1x prints them, some of which name a phase in passing."""
    log = tmp_path / "engine.log"
    known = [one.model_dump() for one in START_PHASES]
    log.write_text("Capturing CUDA graphs: of the engine before\n")
    phases = Phases(known, str(log), log.stat().st_size)
    seen = []
    for line in (
        "INFO 09-21 12:50:00 [core.py:65] Initializing a V1 LLM engine with config: model='m'",
        "INFO 09-21 12:50:01 [gpu_model_runner.py:2338] Starting to load model m...",
        "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00]",
        "INFO 09-21 12:50:12 [model_runner.py:404] Model loading took 17.7 GiB",
        "INFO 09-21 12:50:28 [backends.py:1155] Dynamo bytecode transform time: 10.92 s",
        "INFO 09-21 12:50:44 [backends.py:393] Compiling a graph for compile range (1, 2048) "
        "takes 15.65 s",
        "INFO 06-19 23:05:18 [kv_cache_utils.py:578] GPU KV cache size: 613,024 tokens",
        "INFO 06-19 23:05:35 [gpu_model_runner.py:1608] Graph capturing finished in 17 secs",
    ):
        with log.open("a") as file:
            file.write(line + "\n")
        seen.append(phases.look())
    assert seen == ["launch", *["load"] * 3, *["compile"] * 2, *["warm-up"] * 2]


def test_power_is_known_of_ones_own_gpus_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def prints(text: str, code: int = 0) -> None:
        program.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {code}\n")
        program.chmod(0o755)

    prints("68.52\\n71.20\\n")
    assert watts(2) == pytest.approx(139.72)
    assert watts(1) is None  # another replica's is among them
    assert watts(0) is None
    prints("[N/A]\\n")
    assert watts(1) is None
    prints("NVIDIA-SMI has failed\\n", 9)
    assert watts(1) is None
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert watts(1) is None
    assert watchdog_ledger.process_age_s() > 0


def followed(**changes: Any) -> FollowedJob:
    fields = {"state": "running", "rows_total": 10, "rows_done": 2, "in_flight": 1}
    progress = JobProgress.model_validate({**fields, "updated_at": utc_now(), **changes})
    return FollowedJob(job_id="j", progress=progress)


def test_the_collector_counts_each_second_once_and_silence_as_unknown() -> None:
    meter, sequence = UseMeter(10.0), iter(range(100))

    def heard(now: float, state: str, running: float | None = None) -> None:
        fields = {"state": ReplicaState(state), "requests_running": running}
        meter.heard(
            ReplicaReport(replica=0, incarnation="a", sequence=next(sequence), **fields), now
        )

    heard(0, "starting")
    heard(5, "ready", 0)
    heard(9, "ready", 3)
    assert meter.read([followed()], 10) == {
        (0, Use.STARTING): 5,
        (0, Use.ROWS_WAIT): 4,
        (0, Use.WORKING): 1,
    }
    heard(12, "ready", 0)
    found = meter.read([followed(rows_done=9)], 40)  # the last row is in flight; then silence
    assert found == {
        (0, Use.STARTING): 5,
        (0, Use.ROWS_WAIT): 4,
        (0, Use.WORKING): 3,
        (0, Use.NO_WORK): 10,
        (0, Use.UNKNOWN): 18,
    }
    assert meter.read([], 40) == found
    heard(50, "exited")
    heard(60, "exited")
    assert sum(meter.read([], 70).values()) == 50
