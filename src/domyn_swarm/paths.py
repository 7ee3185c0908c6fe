"""The paths of all files, whose properties neither create nor read anything, and functions that
create files and folders which only their owner may read.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


def home() -> Path:
    """`$DOMYN_SWARM_HOME`, else `~/.domyn_swarm`."""
    return Path(os.environ.get("DOMYN_SWARM_HOME") or Path.home() / ".domyn_swarm").absolute()


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` and `~name` expanded as by a shell; `~name` of an unknown user is kept."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises for unknown users


def database_path() -> Path:
    """The state database."""
    return home() / "swarm.db"


def checkpoints_dir() -> Path:
    """The checkpoints of all jobs, outside swarms' folders, so that they outlive swarms."""
    return home() / "checkpoints"


def private_dir(path: Path) -> Path:
    """Create the folder and its missing parents with mode 0700."""
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(exist_ok=True, mode=0o700)
    return path


def private_file(path: Path) -> Path:
    """Create an empty file with mode 0600, unless it exists, for programs that append to it."""
    (private_dir(path.parent) / path.name).touch(mode=0o600)
    return path


def write_private(path: Path, text: str, *, synced: bool = True) -> None:
    """Write a file atomically (temporary file, fsync, rename) with mode 0600.

    `synced=False` omits the fsync, for files that are rewritten every second.
    """
    private_dir(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_private_once(path: Path, text: str) -> None:
    """As `write_private`, unless the file exists. Of several writers the first one wins."""
    if path.exists():
        return
    private_dir(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        Path(temporary).unlink(missing_ok=True)


@dataclass(frozen=True)
class JobPaths:
    """One job's folder."""

    root: Path

    @property
    def spec(self) -> Path:
        """The job's specification: `job.json`."""
        return self.root / "job.json"

    @property
    def submitter(self) -> Path:
        """The claim of the process that submits the job: `submitter.json`."""
        return self.root / "submitter.json"

    @property
    def asks(self) -> Path:
        """The checkpoint of its rows, which two jobs must not send at once: `asks`."""
        return self.root / "asks"

    @property
    def input_facts(self) -> Path:
        """Sizes and times of the input's files at submission: `input.facts`."""
        return self.root / "input.facts"

    @property
    def exit(self) -> Path:
        """How the job ended: `exit.json`, written by the exit wrapper."""
        return self.root / "exit.json"

    @property
    def runs(self) -> Path:
        """The runs of a job that is continued: `runs.json`, written by the exit wrapper."""
        return self.root / "runs.json"

    @property
    def notify(self) -> Path:
        """Whom the exit wrapper notifies of the job's end, if anyone: `notify.json`."""
        return self.root / "notify.json"

    @property
    def progress(self) -> Path:
        """The job's progress: `progress.json`, rewritten by the worker."""
        return self.root / "progress.json"

    @property
    def script(self) -> Path:
        """The batch script of the job."""
        return self.root / "job.sh"

    @property
    def srun_log(self) -> Path:
        """The output of `srun`, if the job is a step."""
        return self.root / "srun.log"

    @property
    def trace(self) -> Path:
        """The trace of the job's runs, about one line per second: `trace.jsonl`."""
        return self.root / "trace.jsonl"

    @property
    def report(self) -> Path:
        """The report: `report.html`."""
        return self.root / "report.html"

    @property
    def result(self) -> Path:
        """The worker's result of a run that was not killed: `result.json`."""
        return self.root / "result.json"

    @property
    def log(self) -> Path:
        """The worker's log."""
        return self.root / "logs" / "worker.log"


@dataclass(frozen=True)
class SwarmPaths:
    """One swarm's folder, `<home_directory>/swarms/<name>`."""

    root: Path

    @classmethod
    def of(cls, home_directory: Path, name: str) -> SwarmPaths:
        """The folder of the swarm `name` under `home_directory`."""
        return cls(home_directory / "swarms" / name)

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.root / "config.yaml"

    @property
    def plan(self) -> Path:
        """The plan."""
        return self.root / "plan.json"

    def launcher(self, tag: str) -> Path:
        """The claim of the process that brings up the swarm with this tag."""
        return self.root / f"launcher-{tag}.json"

    @property
    def api_key(self) -> Path:
        """The clients' API key, 0600."""
        return self.root / "secrets" / "api_key"

    @property
    def collector_key(self) -> Path:
        """The watchdogs' key for the collector, 0600; different from the clients' key."""
        return self.root / "secrets" / "collector_key"

    @property
    def metrics_key(self) -> Path:
        """The scrapers' key, 0600, which only allows reading metrics. All swarms of a home share
        it, because Prometheus has one key per list of targets.
        """
        return self.root.parent.parent / "secrets" / "metrics_key"

    @property
    def public_name(self) -> str:
        """The name of the swarm's files in folders that several users share."""
        return f"domyn-swarm-{os.getuid()}-{self.root.name}"

    @property
    def scrape_targets(self) -> Path:
        """The scrape targets of all swarms of a home, in one folder for `file_sd_configs`."""
        return self.root.parent.parent / "prometheus"

    @property
    def notify_url(self) -> Path:
        """The URL of the webhook for notifications, 0600: it may contain a secret."""
        return self.root / "secrets" / "notify_url"

    @property
    def ray_token(self) -> Path:
        """The token for joining and using a replica's Ray cluster, 0600."""
        return self.root / "secrets" / "ray_token"

    @property
    def scripts(self) -> Path:
        """The scripts and specs of everything that was submitted or started."""
        return self.root / "scripts"

    @property
    def watchdog_program(self) -> Path:
        """The copy of `watchdog.py` that replicas run."""
        return self.scripts / "watchdog.py"

    def watchdog_spec(self, replica: int) -> Path:
        """The spec of the watchdog of one replica."""
        return self.scripts / f"watchdog-{replica}.json"

    @property
    def follower_program(self) -> Path:
        """The copy of `follower.py` that the other nodes of a replica run."""
        return self.scripts / "follower.py"

    @property
    def follower_spec(self) -> Path:
        """The spec of the follower program."""
        return self.scripts / "follower.json"

    @property
    def companion_spec(self) -> Path:
        """The spec of the program that runs beside the engine on the first node of a replica."""
        return self.scripts / "companion.json"

    @property
    def endpoint_script(self) -> Path:
        """The batch script of the endpoint."""
        return self.scripts / "endpoint.sh"

    @property
    def replica_script(self) -> Path:
        """The batch script of the replicas."""
        return self.scripts / "replicas.sh"

    @property
    def starting(self) -> Path:
        """The lock for starting watchdogs on this machine."""
        return self.scripts / "starting"

    @property
    def endpoint_spec(self) -> Path:
        """The spec of the endpoint program."""
        return self.scripts / "endpoint.json"

    @property
    def endpoint(self) -> Path:
        """The endpoint's address, rewritten whenever it changes."""
        return self.root / "serving" / "endpoint.json"

    @property
    def workspace(self) -> Path:
        """The cloud workspace in which the swarm was launched."""
        return self.root / "serving" / "workspace.json"

    @property
    def replicas(self) -> Path:
        """The collector's last view, for readers that cannot reach the collector."""
        return self.root / "serving" / "replicas.json"

    @property
    def elastic(self) -> Path:
        """The replicas that an elastic swarm should run, and the measured times of its starts."""
        return self.root / "serving" / "elastic.json"

    @property
    def ended(self) -> Path:
        """Why the swarm ended, by itself or by `down`; missing before its end."""
        return self.root / "serving" / "ended.json"

    @property
    def down_after(self) -> Path:
        """The handles of the jobs after which the swarm ends itself."""
        return self.root / "serving" / "down-after"

    def expired(self, replica: int) -> Path:
        """Written by a replica that ends only because of its time limit: it needs a successor."""
        return self.root / "serving" / "expired" / str(replica)

    def elsewhere(self, task: int) -> Path:
        """Job and node of a task whose engine repeatedly ended while it started."""
        return self.root / "serving" / "elsewhere" / str(task)

    @property
    def left_out(self) -> Path:
        """The nodes on which no replica of the swarm is started for a while."""
        return self.root / "serving" / "left-out.json"

    def at_work(self, task: int) -> Path:
        """The job of a running task of the replicas; a task that ends by itself adds a note."""
        return self.root / "serving" / "at-work" / str(task)

    def killed(self, task: int) -> Path:
        """The consecutive jobs of a task that were killed and have successors."""
        return self.root / "serving" / "killed" / str(task)

    def submitting(self, kind: str) -> Path:
        """A submission of the endpoint or of replicas that the scheduler has not yet answered."""
        return self.root / "serving" / f"submitting-{kind}"

    @property
    def endpoint_leaves(self) -> Path:
        """The job of an endpoint at its time limit: steps that start in it end with it."""
        return self.root / "serving" / "endpoint-leaves"

    @property
    def endpoint_asked(self) -> Path:
        """Touched by a task of the replicas that checks with the scheduler for a lost endpoint."""
        return self.root / "serving" / "endpoint-asked"

    @property
    def endpoint_over(self) -> Path:
        """Since when a lost endpoint has no successor, and whether its replicas end."""
        return self.root / "serving" / "endpoint-over.json"

    def endpoint_successor(self, job: str) -> Path:
        """The claim of the task that submits the successor of an endpoint's lost job."""
        return self.root / "serving" / f"successor-of-{job}"

    @property
    def router_manifest(self) -> Path:
        """The workers that the router may use."""
        return self.root / "serving" / "router.json"

    @property
    def watchdog_db(self) -> Path:
        """The collector's history of replica states."""
        return self.root / "watchdog.db"

    @property
    def logs(self) -> Path:
        """The logs of the swarm's programs, except those of jobs."""
        return self.root / "logs"

    @property
    def endpoint_log(self) -> Path:
        """The log of the endpoint program."""
        return self.logs / "endpoint" / "endpoint.log"

    @property
    def router_log(self) -> Path:
        """The log of the router."""
        return self.logs / "endpoint" / "router.log"

    @property
    def slurm_logs(self) -> Path:
        """The folder of the batch scripts' logs."""
        return self.logs / "slurm"

    def replica_logs(self, replica: int) -> Path:
        """The folder of one replica's logs."""
        return self.logs / "replicas" / str(replica)

    def engine_log(self, replica: int) -> Path:
        """The log of one replica's engine."""
        return self.replica_logs(replica) / "engine.log"

    def node_log(self, replica: int, rank: int) -> Path:
        """The log of the program beside the engine on the first node (rank 0), or on another."""
        return self.replica_logs(replica) / f"node-{rank}.log"

    def watchdog_log(self, replica: int) -> Path:
        """The log of one replica's watchdog."""
        return self.replica_logs(replica) / "watchdog.log"

    @property
    def jobs(self) -> Path:
        """The folder of the swarm's jobs."""
        return self.root / "jobs"

    def job(self, job_id: str) -> JobPaths:
        """The folder of one job."""
        return JobPaths(self.jobs / job_id)
