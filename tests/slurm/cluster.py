"""A real Slurm cluster on this machine, out of the distribution's packages.

    cd tests && python -m slurm.cluster up|down FOLDER [--net]

munged, slurmctld and one slurmd per node; GPUs are names without a device behind them. All are on
the loopback address, told apart by their ports, and need neither root, systemd nor cgroups. With
`net` each node has an address and a name of its own (see `namespaces`), which takes root.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from patience import limit_s
from process_list import running
from slurm.namespaces import Namespaces
from slurm.network import PATH, Loopback, Network

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "my_print_defaults", "sacct")
CLIENT_VARIABLES = ("SLURM_CONF", "PATH", "HWLOC_COMPONENTS")  # by which commands reach a cluster
_FAREWELL_S = 5.0  # for what ends by itself; the rest is killed
_DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd", "slurmdbd", "mariadbd")


def missing_programs(*, accounting: bool = False) -> list[str]:
    """What of Slurm is not installed here."""
    wanted = [*PROGRAMS, *(ACCOUNTING_PROGRAMS if accounting else ())]
    return [name for name in wanted if shutil.which(name, path=PATH) is None]


@functools.cache
def slurm_version() -> tuple[int, ...]:
    """The version that is installed here, as (22, 5)."""
    path = shutil.which("slurmctld", path=PATH) or "slurmctld"
    reported = subprocess.run([path, "-V"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, reported.split()[-1].split(".")[:2]))


@dataclass
class SlurmCluster:
    """`start` returns when every node is idle; `stop` leaves no process and no network, however far
    `start` has come. With `net` the nodes are apart from each other: `cut` and `mend` their links.
    """

    folder: Path
    nodes: int = 4
    cpus: int = 8
    gpus: int = 4
    memory_mb: int = 16_000
    accounting: bool = False
    net: bool = False
    settings: str = ""  # more lines of slurm.conf
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))
        }
        conf = str(self.folder / "etc/slurm.conf")
        # Slurm's x86 topology probe binds itself to each CPU in turn, in every step.
        self.env = {**kept, "SLURM_CONF": conf, "PATH": PATH, "HWLOC_COMPONENTS": "-x86"}
        self.keeps: set[str] = set()  # jobs and tasks that `tidy` leaves alone
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.network: Network = Loopback(self.node_names)
        if self.net:
            self.network = Namespaces(self.folder, self.node_names)

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything.

        Raises:
            RuntimeError: a daemon does not come up; its log says why.
        """
        self.network.open()
        self._write_files()
        self._spawn(
            "munged",
            *("-F", f"--socket={self.folder}/run/munge.sock"),
            *(f"--key-file={self.folder}/private/munge.key",),
            *(f"--pid-file={self.folder}/private/munged.pid",),
            *(f"--log-file={self.folder}/private/munged.log",),
            *(f"--seed-file={self.folder}/private/munged.seed", "--num-threads=4"),
        )
        self._until("munged", (self.folder / "run/munge.sock").exists)
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for node in self.node_names:
            self.start_node(node)
        self._until("all nodes idle", self._all_idle)

    @property
    def node_names(self) -> list[str]:
        """The names of the nodes."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    def start_controller(self, *, forget: bool = False) -> None:
        """Start slurmctld and wait until it listens; with `forget` it knows of no job any more."""
        self._spawn("slurmctld", "-D", *(["-c"] if forget else []))
        self._until("slurmctld", lambda: _listens(self._port))

    def stop_controller(self) -> None:
        """Kill slurmctld; what runs on the nodes goes on."""
        self._kill("slurmctld", signal.SIGTERM)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd. Its folder is how its steps are told from those of others."""
        spool = self.folder / "spool" / node
        for folder in (spool, self.folder / "tmp" / node):
            folder.mkdir(parents=True, exist_ok=True)
        self.network.add(node)
        self._spawn("slurmd", "-D", "-N", node, name=node, cwd=spool, on=node)

    def crash_node(self, node: str) -> None:
        """As when a node is reset: its slurmd and everything that it runs are killed. Others find
        their connections closed; a node that says nothing any more is one that is `cut`.
        """
        self._kill(node, signal.SIGKILL)
        # Parents first: one that sees its child die tells the controller, as no lost node does.
        killed = [one for step in self.steps(node) for one in [step, *_children(step)]]
        for process in killed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(killed, timeout=limit_s())  # by then its farewells are on their way
        self.network.lose(node)

    def stop_slurmd(self, node: str) -> None:
        """Kill a node's slurmd alone: its jobs go on."""
        self._kill(node, signal.SIGKILL)

    def cut(self, node: str) -> None:
        """Nothing passes between a node and all others until `mend`; what runs there goes on.

        Raises:
            RuntimeError: the cluster is one without `net`.
        """
        self.network.cut(node)

    def mend(self, node: str) -> None:
        """Undo `cut`. Slurm takes the node back by itself, and ends what it gave up meanwhile.

        Raises:
            RuntimeError: the cluster is one without `net`.
        """
        self.network.mend(node)

    def stop(self) -> None:
        """End all jobs, then all daemons, then whatever is left, the network last."""
        try:
            if _listens(self._port):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.run("scancel", "--user", getpass.getuser(), timeout_s=_FAREWELL_S)
                    self._within(_FAREWELL_S, lambda: not self.steps())
            for name in [*self.node_names, "slurmctld", "slurmdbd", "mariadbd", "munged"]:
                self._kill(name, signal.SIGTERM)
            self.sweep()
        finally:
            self.network.close()

    def tidy(self) -> None:
        """End all jobs but those that are kept, and have every daemon running and every node
        usable. What cannot be repaired is left to the next test.
        """
        if not _listens(self._port):
            self.start_controller()
        for node in self.node_names:
            if node not in self._started or self._started[node].poll() is not None:
                self.start_node(node)
        self._within(limit_s(), self._mended, every_s=0.1)

    def _mended(self) -> bool:
        states = self._node_states()
        for node, state in states.items():
            if state.startswith(("down", "drain")):
                self.run("scontrol", "update", f"nodename={node}", "state=resume")
        over = self._cancel_all_but_kept()
        usable = {"idle", "mixed", "allocated"} if self.keeps else {"idle"}
        return over and len(states) == self.nodes and set(states.values()) <= usable

    def _cancel_all_but_kept(self) -> bool:
        """Whether nothing was left to cancel."""
        lines = self.run("squeue", "-h", "-r", "-o", "%i %T").stdout.splitlines()
        left = {job: state for job, state in map(str.split, lines) if job not in self.keeps}
        if doomed := [job for job, state in left.items() if state != "COMPLETING"]:
            self.run("scancel", "--quiet", *doomed)
        return not left

    def sweep(self) -> None:
        """Kill every process that belongs to this cluster, known by its folder or environment."""
        for process in running():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.pid != os.getpid() and self._is_ours(process):
                    for one in [*_children(process), process]:
                        with contextlib.suppress(psutil.NoSuchProcess):
                            one.kill()

    def _is_ours(self, process: psutil.Process) -> bool:
        if process.name().startswith(_DAEMONS):
            return Path(process.cwd()).is_relative_to(self.folder)
        in_job = "SLURM_JOB_ID" in (environment := process.environ())
        return in_job and environment.get("SLURM_CONF") == self.env["SLURM_CONF"]

    def run(
        self, *command: str, timeout_s: float | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands against this cluster."""
        return subprocess.run(
            command,
            env={**self.env, **(env or {})},
            cwd=self.folder,  # where what a job prints is left
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s or limit_s(),
            check=False,
        )

    def steps(self, node: str = "") -> list[psutil.Process]:
        """What Slurm runs, on a node or on all: the parents of what belongs to jobs."""
        found = []
        for process in running():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                named = process.name().startswith("slurmstepd")
                if named and Path(process.cwd()).is_relative_to(self.folder / "spool" / node):
                    found.append(process)
        return found

    # -- inside --------------------------------------------------------------------------------

    def _spawn(
        self,
        program: str,
        *arguments: str,
        name: str | None = None,
        cwd: Path | None = None,
        on: str | None = None,
    ) -> None:
        path = shutil.which(program, path=PATH)
        if path is None:
            raise RuntimeError(f"{program} is not installed")
        cwd = cwd or self.folder
        start = self.network.inside(on, cwd) if on else []
        with (self.folder / "log" / f"{name or program}.out").open("ab") as output:
            self._started[name or program] = subprocess.Popen(
                [*start, path, *arguments],
                env=self.env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _kill(self, name: str, number: int) -> None:
        process = self._started.pop(name, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _all_idle(self) -> bool:
        states = self._node_states()
        return len(states) == self.nodes and set(states.values()) == {"idle"}

    def _node_states(self) -> dict[str, str]:
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout.splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        if not self._within(limit_s(), condition):
            raise RuntimeError(f"not in {limit_s():g} s: {what}; see {self.folder / 'log'}")

    @staticmethod
    def _within(seconds: float, condition: Callable[[], bool], every_s: float = 0.03) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= deadline:
                return False
            time.sleep(every_s)
        return True

    def _start_accounting(self) -> None:
        """slurmdbd over a MariaDB that nobody but this user reaches: a socket in a 0700 folder."""
        private = self.folder / "private"
        if not (private / "mysql/mysql").exists():
            self._install_database(private / "mysql")
        self._spawn(
            "mariadbd",
            *("--no-defaults", f"--datadir={private}/mysql", f"--socket={private}/mysql.sock"),
            *("--skip-networking", "--skip-grant-tables", f"--pid-file={private}/mysql.pid"),
            *("--innodb-buffer-pool-size=32M", "--innodb-lock-wait-timeout=900"),
            *("--skip-log-bin", "--performance-schema=off", f"--user={getpass.getuser()}"),
        )
        self._until("mariadbd", lambda: _answers(private / "mysql.sock"))
        self.env["MYSQL_UNIX_PORT"] = f"{private}/mysql.sock"
        self._spawn("slurmdbd", "-D")
        self._until("slurmdbd", lambda: _listens(self._port + 1))

    def _install_database(self, folder: Path) -> None:
        """The tables of the database itself: without them slurmdbd starts, and all limits of QoS
        and associations silently do not hold.
        """
        command = ["mariadb-install-db", "--no-defaults", f"--datadir={folder}", "--skip-test-db"]
        options = ["--auth-root-authentication-method=normal", f"--user={getpass.getuser()}"]
        done = self.run(*command, *options)
        if done.returncode:
            raise RuntimeError(f"no database in {folder}: {done.stdout}{done.stderr}")

    def _write_files(self) -> None:
        from slurm.configuration import mail_program, slurm_conf, slurmdbd_conf, task_prolog

        modes = {"": 0o755, "etc": 0o755, "run": 0o755, "log": 0o755, "spool": 0o755}
        for name, mode in {**modes, "dev": 0o755, "state": 0o700, "private": 0o700}.items():
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / name).chmod(mode)
        key = self.folder / "private/munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        port = self.folder / "run/port"
        port.write_text(str(_free_ports(self.nodes + 2)))
        (self.folder / "etc/slurm.conf").write_text(slurm_conf(self, self._port, slurm_version()))
        for name, text in {"task_prolog": task_prolog(self), "mail": mail_program(self)}.items():
            script = self.folder / f"etc/{name}.sh"
            script.write_text(text)
            script.chmod(0o755)
        for number in range(self.gpus):
            device = self.folder / f"dev/gpu{number}"
            device.unlink(missing_ok=True)
            device.symlink_to("/dev/null")  # slurmd wants a character device
        gres = f"AutoDetect=off\nName=gpu File={self.folder}/dev/gpu[0-{self.gpus - 1}]\n"
        (self.folder / "etc/gres.conf").write_text(gres if self.gpus else "")
        # else slurmd looks for a cgroup file system and ends where there is none; 20.11 does not
        # know the key
        cgroups = "CgroupPlugin=cgroup/v1\n" if slurm_version() >= (21, 8) else ""
        (self.folder / "etc/cgroup.conf").write_text(cgroups)
        database = self.folder / "etc/slurmdbd.conf"
        database.touch(0o600)
        database.write_text(slurmdbd_conf(self, self._port + 1))

    @property
    def _port(self) -> int:
        try:
            return int((self.folder / "run/port").read_text())
        except FileNotFoundError:
            return 0


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return bool(port) and probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _free_ports(count: int) -> int:
    """The first of so many consecutive free ports, below the ephemeral range. Processes that begin
    one after the other look far apart: what one found it listens at only a second later.
    """
    for start in range(20_000 + os.getpid() * 37 % 9_000, 32_000, count + 1):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(start, start + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return start
    raise RuntimeError("no free ports")


def main() -> None:
    """Start or stop a cluster to play with."""
    parser = argparse.ArgumentParser(description="A real Slurm cluster on this machine.")
    parser.add_argument("what", choices=["up", "down"])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--net", action="store_true", help="each node has an address of its own; takes root"
    )
    told = parser.parse_args()
    folder = told.folder.resolve()
    if told.what == "up":
        cluster = SlurmCluster(folder, net=told.net)
        cluster.start()
        print(f"export SLURM_CONF={cluster.env['SLURM_CONF']}")
    else:
        SlurmCluster(folder, net=Namespaces.was_opened(folder)).stop()


if __name__ == "__main__":
    main()
