"""Records what the installed Slurm's commands print: what the tests' parsers are run over.

    cd tests && python -m slurm.recording FOLDER        writes into FOLDER/<version>/

A cluster of its own gets jobs of every kind that ends, waits or is refused. Names of this machine
and folders are replaced.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from domyn_swarm.backends.slurm.allowance import ACCOUNT_FIELDS, ASSOCIATION_FIELDS, QOS_FIELDS
from domyn_swarm.backends.slurm.printed import HISTORY, OUTPUTS_FORMAT, RUNS_FORMAT
from domyn_swarm.backends.slurm.slurm_states import (
    ACCOUNT_FORMAT,
    QUEUE_FORMAT,
    STEP_ACCOUNT_FORMAT,
    STEP_FORMAT,
)
from slurm.cgroups import CgroupCluster
from slurm.cluster import SlurmCluster, slurm_version

_SETTINGS = """\
JobSubmitPlugins=lua
PartitionName=short Nodes=ALL MaxTime=1 State=UP
PartitionName=mine Nodes=ALL MaxTime=INFINITE State=UP ExclusiveUser=YES
"""
_SITE = """
function slurm_job_submit(job, partitions, uid)
   if job.name == "unpaid" then
      slurm.log_user("You must name an account: add --account=PROJECT,\\nsee the site's page")
      return slurm.ERROR
   end
   return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid)
   return slurm.SUCCESS
end
"""
_GREEDY = "kept = b'x' * 900_000_000; import time; time.sleep(60)"
_SHARED = re.compile(rb"Per(?:Account|User|Limit)$")  # of names without QOS or Assoc
_WAIT_S = 150.0  # a time limit of a minute is looked at twice a minute


class Recording:
    """One cluster, and the folder that takes what its commands print."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder

    def keep(self, name: str, text: str) -> None:
        """Write a file, with the machine's own names replaced."""
        replaced = text.replace(str(self._cluster.folder), "/cluster")
        replaced = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "login", replaced)
        replaced = replaced.replace(os.uname().release, "6.1.0")
        (self._folder / name).write_text(replaced, encoding="utf-8")

    def ask(self, name: str, *command: str) -> None:
        """Keep what a command prints; the error output of one that fails."""
        done = self._cluster.run(*command)
        self.keep(name, done.stdout if done.returncode == 0 else done.stderr + done.stdout)

    def refused(self, name: str, *command: str) -> None:
        """Keep the error output of a command that fails."""
        done = self._cluster.run(*command)
        assert done.returncode != 0, (command, done)
        self.keep(name, done.stderr)

    def submit(self, comment: str, script: str, *options: str) -> str:
        """Submit a job; its id."""
        log = f"--output={self._cluster.folder}/log/{comment.replace('/', '-')}.out"
        every = ["--parsable", f"--comment={comment}", "--mem=100M", log, *options]
        done = self._cluster.run("sbatch", *every, "--wrap", script)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The state of a job or task, as squeue shows it."""
        shown = self._cluster.run("squeue", "-h", "-t", "all", "-r", "-j", job, "-o", "%T").stdout
        return shown.split()[0] if shown.split() else ""

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for something, not for ever."""
        ends = time.monotonic() + _WAIT_S
        while not condition():
            if time.monotonic() > ends:
                seen = self._cluster.run("squeue", "--array").stdout
                seen += self._cluster.run("sinfo", "-N", "-o", "%N %T %E").stdout
                raise RuntimeError(f"not in {_WAIT_S:g} s: {what}\n{seen}")
            time.sleep(0.2)

    def until_state(self, job: str, *states: str) -> None:
        """Wait for a job's state."""
        self.until(f"{job} is {states}, not {self.state(job)}", lambda: self.state(job) in states)


def record(cluster: SlurmCluster, folder: Path) -> None:
    """Everything, in an order in which nothing disturbs what comes later."""
    recording = Recording(cluster, folder)
    late = recording.submit("t/late", "sleep 600", "--time=1", "--no-requeue")
    _site(recording)
    _limits(recording)
    _reasons(recording)
    _past(recording)
    _submissions(recording)
    running = recording.submit("t/running", "sleep 600", "--mem=500M", "--cpus-per-task=2")
    recording.until_state(running, "RUNNING")
    recording.ask("job-running.txt", "scontrol", "--oneliner", "show", "job", running)
    _steps(recording, cluster, running)
    _memory(recording, cluster)
    _queue(recording, cluster, late)
    _without_controller(recording, cluster, running)


def _site(recording: Recording) -> None:
    show = ("scontrol", "--oneliner", "show")
    recording.ask("config.txt", *show[:1], "show", "config")
    recording.ask("nodes.txt", *show, "node")
    for name in ("main", "urgent", "whole", "short", "mine"):
        recording.ask(f"partition-{name}.txt", *show, "partition", name)
    recording.ask("partitions.txt", *show, "partition")
    recording.keep("partition-none.txt", recording._cluster.run(*show, "partition", "none").stdout)
    recording.ask("sinfo.txt", "sinfo", "--noheader", "--Node", "--format", "%N %T")
    manager = ("sacctmgr", "--noheader", "--parsable2", "show")
    recording.ask("associations.txt", *manager, "associations", "user=root", "format=Account,QOS")
    recording.ask("qos.txt", *manager, "qos", "format=Name")


def _limits(recording: Recording) -> None:
    """Of a QoS, a user and an account that have each kind of limit."""
    manage, user = ("sacctmgr", "--immediate"), getpass.getuser()
    each = ["MaxTRESPerJob=gres/gpu=2,mem=8G", "MaxWall=90", "GrpTRES=cpu=40", "GrpJobs=7"]
    for words in (
        ["add", "qos", "bound", *each, "MaxJobsPerUser=3", "MinTRESPerJob=cpu=2"],
        ["modify", "qos", "bound", "set", "Flags=OverPartQOS", "MaxSubmitJobsPerUser=9"],
        ["modify", "qos", "bound", "set", "MaxTRESPerAccount=cpu=30", "MaxJobsPerAccount=2"],
        ["modify", "qos", "bound", "set", "MaxTRESMinsPerJob=cpu=600", "GrpTRESRunMins=cpu=900"],
        ["modify", "qos", "bound", "set", "MaxSubmitJobsPerAccount=8"],
        ["add", "account", "faculty", "GrpTRES=gres/gpu=8", "GrpTRESRunMins=cpu=90000"],
        ["add", "account", "research", "parent=faculty"],
        [
            "add",
            "user",
            user,
            "account=research",
            "MaxJobs=4",
            "MaxWall=1-00:00:00",
            "MaxTRESMins=cpu=5000",
        ],
    ):
        done = recording._cluster.run(*manage, *words)
        assert done.returncode == 0, (words, done)
    show = ("sacctmgr", "--noheader", "--parsable2", "show")
    recording.ask("qos-limits.txt", *show, "qos", "name=bound", f"format={','.join(QOS_FIELDS)}")
    of_user = ("associations", f"user={user}", "account=research")
    fields = f"format={','.join(ASSOCIATION_FIELDS)}"
    recording.ask("association-limits.txt", *show, *of_user, fields)
    of_account = ("associations", "account=faculty", "user=")
    recording.ask("account-limits.txt", *show, *of_account, f"format={','.join(ACCOUNT_FIELDS)}")


def _reasons(recording: Recording) -> None:
    """The names of all limits that a job may wait for: no cluster shows each of them."""
    [library] = Path("/usr/lib").glob("*/slurm*/libslurmfull.so")
    names = re.findall(
        rb"(?<=\0)(?:(?:QOS|Assoc)(?:Max|Min|Grp)|Max)\w+(?=\0)", library.read_bytes()
    )
    limits = {one.decode() for one in names if not one.startswith(b"Max") or _SHARED.search(one)}
    recording.keep("reasons.txt", "".join(f"{one}\n" for one in sorted(limits)))


def _past(recording: Recording) -> None:
    """Where a job printed to, and what accounting tells of it once it is over."""
    job = recording.submit("t/past", "sleep 5", "--job-name=past")
    listing = ("squeue", "--all", "--noheader", "--array", "--states=all", "--jobs", job)
    recording.ask("outputs.txt", *listing, "--Format", OUTPUTS_FORMAT)
    account = ("sacct", "--jobs", job)
    over = (*account, "--noheader", "--allocations", "--format", "State")
    recording.until("its end", lambda: "COMPLETED" in recording._cluster.run(*over).stdout)
    told = ("--noheader", "--parsable2", "--allocations", "--duplicates", "--format", RUNS_FORMAT)
    recording.ask("runs.txt", "env", "SLURM_TIME_FORMAT=%s", *account, *told)
    recording.ask("history.txt", *HISTORY.split(), "--jobs", job)


def _submissions(recording: Recording) -> None:
    script = ("--wrap", "sleep 1")
    recording.ask("submitted.txt", "sbatch", "--parsable", *script)
    more = ("--nodes=2", "--ntasks=1")
    recording.keep("warned.txt", recording._cluster.run("sbatch", *more, *script).stderr)
    wrong = {
        "partition": ("--partition=nowhere",),
        "memory": ("--mem=900G",),
        "gpus": ("--gres=gpu:99",),
        "array": ("--array=0-2000000",),
        "unpaid": ("--job-name=unpaid",),
        "qos": ("--qos=none",),
        "option": ("--no-such-option",),
    }
    for name, options in wrong.items():
        for kind, flags in (("refused", ("--parsable",)), ("untestable", ("--test-only",))):
            done = recording._cluster.run("sbatch", *flags, *options, *script)
            if done.returncode != 0:
                recording.keep(f"{kind}-{name}.txt", done.stderr)
    done = recording._cluster.run("sbatch", "--test-only", *script)
    recording.keep("testable.txt", done.stderr)


def _srun(cluster: SlurmCluster, job: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["srun", f"--jobid={job}", "--overlap", "--exact", "--ntasks=1", "--nodes=1", *words],
        env=cluster.env,
        cwd=cluster.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _steps(recording: Recording, cluster: SlurmCluster, job: str) -> None:
    steps = [
        _srun(cluster, job, f"--job-name=job-{name}", "--mem=0", "--cpus-per-task=2", "sleep", "60")
        for name in ("one", "two")
    ]
    listing = ("squeue", "--noheader", "--steps", "--jobs", job, "--format", STEP_FORMAT)
    recording.until("two steps", lambda: cluster.run(*listing).stdout.count("|job-") == 2)
    recording.ask("steps.txt", *listing)
    for name, words in {
        "memory": ("--mem=9G", "true"),
        "cpus": ("--cpus-per-task=64", "true"),
        "program": ("/no/such/program",),
    }.items():
        recording.keep(f"srun-{name}.txt", _srun(cluster, job, *words).communicate()[0])
    whole = _srun(cluster, job, "--mem=500M", "--cpus-per-task=2", "sleep", "60")
    another = _srun(cluster, job, "--mem=500M", "--cpus-per-task=2", "sleep", "60")
    for _ in range(50):  # what it says of its waiting, where it waits
        time.sleep(0.1)
    for step in (*steps, whole, another):
        step.terminate()
    recording.keep("srun-second.txt", another.communicate()[0])
    for step in (*steps, whole):
        step.communicate()
    recording.keep("srun-unknown.txt", _srun(cluster, "999999", "true").communicate()[0])


def _memory(recording: Recording, cluster: SlurmCluster, how: str = "") -> None:
    """Of a job and of a step that take more than they have; `how` they are found out."""
    greedy = f'{sys.executable} -c "{_GREEDY}"'
    batch = recording.submit("t/greedy", greedy)
    host = recording.submit("t/host", "sleep 600", "--mem=200M")
    recording.until_state(host, "RUNNING")
    step = _srun(cluster, host, "--mem=100M", sys.executable, "-c", _GREEDY)
    recording.keep(f"srun-out-of-memory{how}.txt", step.communicate()[0])
    recording.until(f"the end of {batch}", lambda: recording.state(batch) not in {"RUNNING", ""})
    recording.until_state(batch, "FAILED", "OUT_OF_MEMORY", "CANCELLED")
    show = ("scontrol", "--oneliner", "show", "job", batch)
    recording.ask(f"job-out-of-memory{how}.txt", *show)
    recording.keep(f"log-out-of-memory{how}.txt", (cluster.folder / "log/t-greedy.out").read_text())
    cluster.run("scancel", host)


def _queue(recording: Recording, cluster: SlurmCluster, late: str) -> None:
    submit, state = recording.submit, recording.until_state
    ends = {name: submit(f"t/{name}", f"exit {code}") for name, code in (("ok", 0), ("bad", 3))}
    state(ends["ok"], "COMPLETED")
    state(ends["bad"], "FAILED")
    array = submit("t/array", "sleep 600", "--array=0-3", "--gres=gpu:4")
    state(f"{array}_0", "RUNNING")
    lost = submit("t/lost", "sleep 600", "--no-requeue", "--nodelist=n3")
    taken = submit("t/taken", "sleep 600", "--no-requeue", "--nodelist=n2", "--cpus-per-task=2")
    back = submit("t/back", "sleep 600", "--requeue", "--nodelist=n1", "--time=10")
    stopped = submit("t/stopped", "sleep 600")
    for job in (lost, taken, back, stopped):
        state(job, "RUNNING")
    cluster.run("scontrol", "update", "nodename=n3", "state=down", "reason=test")
    submit("t/urgent", "sleep 600", "--partition=urgent", "--nodelist=n2", "--exclusive")
    cluster.run("scontrol", "requeue", back)
    cluster.run("scancel", stopped)
    held = submit("t/held", "sleep 600")
    cluster.run("scontrol", "hold", held)
    submit("t/own-hold", "true", "--hold")
    submit("t/later", "true", "--begin=now+1hour")
    submit("t/after", "true", f"--dependency=afterok:{ends['bad']}")
    submit("t/too-long", "true", "--partition=short", "--time=60")
    waits = submit("t/waits", "true", "--gres=gpu:4")
    state(lost, "NODE_FAIL")
    state(taken, "PREEMPTED", "CANCELLED")
    state(stopped, "CANCELLED")
    state(late, "TIMEOUT")
    recording.ask("job-pending.txt", "scontrol", "--oneliner", "show", "job", waits)
    recording.ask("job-array.txt", "scontrol", "--oneliner", "show", "job", f"{array}_0")
    for name, job in (("preempted", taken), ("time-limit", late), ("node-failed", lost)):
        recording.ask(f"job-{name}.txt", "scontrol", "--oneliner", "show", "job", job)
    listing = ("squeue", "--noheader", "--array", "--states=all", "--user", str(os.getuid()))
    recording.ask("queue.txt", *listing, "--format", QUEUE_FORMAT)
    recording.ask("sinfo-lost.txt", "sinfo", "--noheader", "--Node", "--format", "%N %T")
    for name, comment in (("cancelled", "stopped"), ("time-limit", "late"), ("preempted", "taken")):
        recording.keep(f"log-{name}.txt", (cluster.folder / f"log/t-{comment}.out").read_text())
    account = ("sacct", "--noheader", "--parsable2", "--jobs")
    known = ("CANCELLED", "TIMEOUT", "NODE_FAIL", "COMPLETED", "FAILED")
    ids = ",".join(map(str, range(1, int(waits) + 1)))
    recording.until(
        "all in sacct",
        lambda: all(
            one in cluster.run(*account, ids, "--format", ACCOUNT_FORMAT).stdout for one in known
        ),
    )
    recording.ask("sacct.txt", *account, ids, "--format", ACCOUNT_FORMAT)
    recording.ask("sacct-steps.txt", *account, ids, "--format", STEP_ACCOUNT_FORMAT)


def _without_controller(recording: Recording, cluster: SlurmCluster, job: str) -> None:
    cluster.stop_controller()
    for command in (
        ("squeue", "--noheader"),
        ("sbatch", "--parsable", "--wrap", "true"),
        ("scontrol", "requeue", job),
        ("scontrol", "show", "config"),
        ("scancel", job),
    ):
        name = "-".join(word for word in command[:2] if word.isalpha())
        recording.refused(f"unreachable-{name}.txt", *command)
    cluster.start_controller()


def record_cgroups(folder: Path) -> None:
    """What is said of kills for memory by the kernel, in a cluster of its own."""
    if why := CgroupCluster.refusal():
        print(f"not recorded: kills by control groups: {why}")
        return
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as made:
        cluster = CgroupCluster(Path(made), nodes=1)
        recording = Recording(cluster, folder)
        try:
            cluster.start()
            _memory(recording, cluster, "-by-cgroup")
        finally:
            cluster.stop()


def main(folder: Path) -> None:
    """Record the installed version."""
    version = ".".join(f"{part:02d}" for part in slurm_version())
    (folder / version).mkdir(parents=True, exist_ok=True)
    record_cgroups(folder / version)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as made:
        cluster = SlurmCluster(Path(made), nodes=3, accounting=True, settings=_SETTINGS)
        # 20.11 looks for it in one place alone
        place = cluster.folder / "etc" if slurm_version() >= (21, 0) else Path("/etc/slurm")
        place.mkdir(exist_ok=True)
        (place / "job_submit.lua").write_text(_SITE)
        try:
            cluster.start()
            record(cluster, folder / version)
        finally:
            cluster.stop()
            (place / "job_submit.lua").unlink()
    print(f"recorded: {folder / version}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
