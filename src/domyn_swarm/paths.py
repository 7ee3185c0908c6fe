"""Where everything lies. Properties only: nothing here creates, reads or writes a file.

The exceptions are `private_dir`, `private_file`, `write_private` and `write_private_once`, the ways
to create what only its owner may read.
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
    """A path as a shell takes it: `~` and `~name` are home folders; of nobody's, they are names."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises for unknown users


def database_path() -> Path:
    """The state database."""
    return home() / "swarm.db"


def checkpoints_dir() -> Path:
    """Checkpoints of all jobs: outside every swarm, so that they outlive it."""
    return home() / "checkpoints"


def private_dir(path: Path) -> Path:
    """Create the folder and its missing parents, readable by their owner alone."""
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(exist_ok=True, mode=0o700)
    return path


def private_file(path: Path) -> Path:
    """Have a file there, readable by its owner alone, that other programs append to."""
    (private_dir(path.parent) / path.name).touch(mode=0o600)
    return path


def write_private(path: Path, text: str, *, synced: bool = True) -> None:
    """Write a file atomically (temporary file, fsync, rename), readable by its owner alone.

    `synced=False` leaves the fsync out: for what is written anew every second.
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
    """As `write_private`, unless the file is there already; of several writers one wins."""
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
        """What was asked: `job.json`."""
        return self.root / "job.json"

    @property
    def submitter(self) -> Path:
        """Which process is submitting it: `submitter.json`."""
        return self.root / "submitter.json"

    @property
    def asks(self) -> Path:
        """Where the answers to its rows are kept, which two jobs at once must not ask: `asks`."""
        return self.root / "asks"

    @property
    def input_facts(self) -> Path:
        """What the submitter found of the input's files: `input.facts`."""
        return self.root / "input.facts"

    @property
    def exit(self) -> Path:
        """How it ended: `exit.json`, written by our wrapper."""
        return self.root / "exit.json"

    @property
    def runs(self) -> Path:
        """The runs of a job that goes on by itself: `runs.json`, written by our wrapper."""
        return self.root / "runs.json"

    @property
    def notify(self) -> Path:
        """Whom our wrapper tells how it ended, if anybody: `notify.json`."""
        return self.root / "notify.json"

    @property
    def progress(self) -> Path:
        """How far it is: `progress.json`, rewritten by the worker."""
        return self.root / "progress.json"

    @property
    def script(self) -> Path:
        """The batch script that was submitted for it."""
        return self.root / "job.sh"

    @property
    def srun_log(self) -> Path:
        """What `srun` said, of a job that is a step."""
        return self.root / "srun.log"

    @property
    def trace(self) -> Path:
        """How the run went, a line about every second: `trace.jsonl`."""
        return self.root / "trace.jsonl"

    @property
    def report(self) -> Path:
        """The job as a page for people: `report.html`."""
        return self.root / "report.html"

    @property
    def result(self) -> Path:
        """The worker's own account of a run that came to its end: `result.json`."""
        return self.root / "result.json"

    @property
    def log(self) -> Path:
        """What the worker printed."""
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
        """What was asked."""
        return self.root / "config.yaml"

    @property
    def plan(self) -> Path:
        """What was derived."""
        return self.root / "plan.json"

    def launcher(self, tag: str) -> Path:
        """Which process is bringing up the swarm of this tag."""
        return self.root / f"launcher-{tag}.json"

    @property
    def api_key(self) -> Path:
        """The clients' key, 0600."""
        return self.root / "secrets" / "api_key"

    @property
    def collector_key(self) -> Path:
        """The watchdogs' key to the collector, 0600; never the clients'."""
        return self.root / "secrets" / "collector_key"

    @property
    def metrics_key(self) -> Path:
        """The scrapers' key, 0600: one for all swarms of a home, since Prometheus has one for each
        list of targets. It reads metrics and nothing else.
        """
        return self.root.parent.parent / "secrets" / "metrics_key"

    @property
    def public_name(self) -> str:
        """What its files are called in folders where several users' swarms meet."""
        return f"domyn-swarm-{os.getuid()}-{self.root.name}"

    @property
    def scrape_targets(self) -> Path:
        """For all swarms of a home: where to scrape each (`file_sd_configs` know one folder)."""
        return self.root.parent.parent / "prometheus"

    @property
    def notify_url(self) -> Path:
        """The webhook that is told what happens, 0600: its URL may hold a secret."""
        return self.root / "secrets" / "notify_url"

    @property
    def ray_token(self) -> Path:
        """What Ray asks of everyone who joins or uses a replica's cluster, 0600."""
        return self.root / "secrets" / "ray_token"

    @property
    def scripts(self) -> Path:
        """Everything that was submitted or started, exactly as it was."""
        return self.root / "scripts"

    @property
    def watchdog_program(self) -> Path:
        """The copy of `watchdog.py` that replicas run."""
        return self.scripts / "watchdog.py"

    def watchdog_spec(self, replica: int) -> Path:
        """What the watchdog of one replica is told."""
        return self.scripts / f"watchdog-{replica}.json"

    @property
    def follower_program(self) -> Path:
        """The copy of `follower.py` that the other nodes of a replica run."""
        return self.scripts / "follower.py"

    @property
    def follower_spec(self) -> Path:
        """What they are told."""
        return self.scripts / "follower.json"

    @property
    def companion_spec(self) -> Path:
        """What the first node of a replica keeps running beside the engine."""
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
        """Locked by whoever starts watchdogs on this machine."""
        return self.scripts / "starting"

    @property
    def endpoint_spec(self) -> Path:
        """What the endpoint program is told."""
        return self.scripts / "endpoint.json"

    @property
    def endpoint(self) -> Path:
        """Where the endpoint listens, rewritten whenever it moves."""
        return self.root / "serving" / "endpoint.json"

    @property
    def workspace(self) -> Path:
        """The workspace of a cloud that the swarm was launched in."""
        return self.root / "serving" / "workspace.json"

    @property
    def replicas(self) -> Path:
        """The collector's last view, for readers when it cannot be asked."""
        return self.root / "serving" / "replicas.json"

    @property
    def elastic(self) -> Path:
        """Which replicas an elastic swarm shall run, and what was measured of its starts."""
        return self.root / "serving" / "elastic.json"

    @property
    def ended(self) -> Path:
        """Why the swarm ended, once it has: by itself, or by `down`."""
        return self.root / "serving" / "ended.json"

    @property
    def down_after(self) -> Path:
        """The handles of the jobs after which the swarm ends itself."""
        return self.root / "serving" / "down-after"

    def expired(self, replica: int) -> Path:
        """Left by a replica that ended for its time limit alone: it wants a successor."""
        return self.root / "serving" / "expired" / str(replica)

    def elsewhere(self, task: int) -> Path:
        """Left by a task whose engine ended again and again as it started: its job, its node."""
        return self.root / "serving" / "elsewhere" / str(task)

    @property
    def left_out(self) -> Path:
        """The nodes that the swarm's replicas are not started on for a while."""
        return self.root / "serving" / "left-out.json"

    def at_work(self, task: int) -> Path:
        """The job of a task of the replicas that runs; one that ends by itself adds so."""
        return self.root / "serving" / "at-work" / str(task)

    def killed(self, task: int) -> Path:
        """The jobs of a task that were killed and have successors, in a row."""
        return self.root / "serving" / "killed" / str(task)

    def submitting(self, kind: str) -> Path:
        """A submission of the endpoint or of replicas that the scheduler has not answered yet."""
        return self.root / "serving" / f"submitting-{kind}"

    @property
    def endpoint_leaves(self) -> Path:
        """The job of an endpoint whose time is up: what begins in its allocation ends with it."""
        return self.root / "serving" / "endpoint-leaves"

    @property
    def endpoint_asked(self) -> Path:
        """Touched by a task of the replicas that asks the scheduler for a lost endpoint."""
        return self.root / "serving" / "endpoint-asked"

    @property
    def endpoint_over(self) -> Path:
        """Since when an endpoint that nobody brings back is over, and whether its replicas end."""
        return self.root / "serving" / "endpoint-over.json"

    def endpoint_successor(self, job: str) -> Path:
        """The claim of the one who submits the successor of an endpoint's job that was lost."""
        return self.root / "serving" / f"successor-of-{job}"

    @property
    def router_manifest(self) -> Path:
        """The workers that the router may use."""
        return self.root / "serving" / "router.json"

    @property
    def watchdog_db(self) -> Path:
        """History of replica states; the collector's own."""
        return self.root / "watchdog.db"

    @property
    def logs(self) -> Path:
        """What every program of the swarm printed, its jobs' excepted."""
        return self.root / "logs"

    @property
    def endpoint_log(self) -> Path:
        """What the endpoint program printed."""
        return self.logs / "endpoint" / "endpoint.log"

    @property
    def router_log(self) -> Path:
        """What the router printed."""
        return self.logs / "endpoint" / "router.log"

    @property
    def slurm_logs(self) -> Path:
        """What the batch scripts printed."""
        return self.logs / "slurm"

    def replica_logs(self, replica: int) -> Path:
        """The folder of one replica's logs."""
        return self.logs / "replicas" / str(replica)

    def engine_log(self, replica: int) -> Path:
        """What one replica's engine printed."""
        return self.replica_logs(replica) / "engine.log"

    def node_log(self, replica: int, rank: int) -> Path:
        """What ran beside the engine printed, on the first node (rank 0) and on the others."""
        return self.replica_logs(replica) / f"node-{rank}.log"

    def watchdog_log(self, replica: int) -> Path:
        """What one replica's watchdog printed."""
        return self.replica_logs(replica) / "watchdog.log"

    @property
    def jobs(self) -> Path:
        """The folder of the swarm's jobs."""
        return self.root / "jobs"

    def job(self, job_id: str) -> JobPaths:
        """The folder of one job."""
        return JobPaths(self.jobs / job_id)
