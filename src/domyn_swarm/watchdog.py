"""Starts one engine, watches it, restarts it, reports on it.

Run as `watchdog.py SPEC.json [ADDRESS [lifeline]]`: by what address this node is reached where the
spec does not say; `lifeline`: it stops when its standard input ends.

Standard library only and Python 3.8 syntax: this file is copied next to the engine and runs in
whatever image the engine comes in. Its spec is built, and described, by `backends.watchdog_spec`.

Guaranteed: the engine (its whole process group) never outlives the watchdog, however that dies;
SIGTERM drains the engine before it ends; a final state is reported even to a collector that comes
late. Exit code 0: ended as asked, 1: the engine failed, 2: the spec cannot be used, 3: one of the
replica's nodes was lost, so that it must be started anew as a whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import http.client
import json
import os
import re
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from typing import Any, Callable, NamedTuple
from urllib.parse import urlsplit

REPORT_TIMEOUT_S = 5.0
RETRY_REPORT_S = 1.0
DRAIN_POLL_S = 0.2
STOPPED_REPORT_S = 5.0  # how long an EXITED that was asked for is tried to be reported
COLLECTOR_ENDED_S = 2.0  # nobody has listened where it was for so long: it has ended
STALE_S = 10.0  # the least silence after which a collector takes a replica out of the router
ROUTER_FOLLOWS_S = 3.0  # until the router has surely followed the collector
REPEATED_S = 15.0  # a SIGTERM that comes so soon after one repeats it: schedulers send it again
STABLE_S = 600.0  # an engine that was ready for so long has its restarts forgiven
RECHECK_S = 1.0  # a failed probe is repeated so soon, and a sick engine probed so often
BUSY_S = 20.0  # tokens, or work, that came so lately excuse an engine whose health is late
LATE = 2.5  # times `http_timeout`: how long the metrics of an engine may take whose health is late
SAMPLES_PER_HEARTBEAT = 1.25  # so that no figure is older than a heartbeat when it is reported
MOST_FILES = 65_536
WITHOUT_ENGINE = ("starting", "restarting", "exited", "failed")
LOG_TAIL_BYTES = 65_536
READ_LIMIT_BYTES = 4_000_000
LOST_NODE = 3
# What a disk or a system refuses for a while
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENOMEM)


def log(text: str) -> None:
    """One line with the time, to stderr; lost where the disk does not take it."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError):
        os.write(2, ("%s %s\n" % (stamp, text)).encode("utf-8", "backslashreplace"))


class Spec(NamedTuple):
    """What the watchdog is told; the fields are described in `backends.watchdog_spec`."""

    replica: int
    host: str
    port_from: int
    argv: list[str]
    env: dict[str, str]
    key_env: str | None
    key_file: str
    collector_key_file: str
    endpoint_file: str
    engine_log: str
    health_path: str
    metrics_path: str | None
    running_metric: str | None
    waiting_metric: str | None
    progress_metrics: list[str]
    reported_metrics: dict[str, str]
    first_request: dict[str, Any] | None
    failure_patterns: list[dict[str, Any]]
    probe_interval: float
    startup_probe_interval: float
    http_timeout: float
    readiness_timeout: float
    restart_policy: str
    unhealthy_restart_after: float
    max_restarts: int
    restart_backoff_initial: float
    restart_backoff_max: float
    kill_grace_seconds: float
    drain_seconds: float
    progress_timeout: float | None
    ray: dict[str, Any] | None
    heartbeat_seconds: float
    final_report_seconds: float


# -- pure decisions ----------------------------------------------------------------------


class Restarts:
    """When an engine that ended is started again. `total` counts every restart ever."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._recent = 0
        self.total = 0

    def served(self, seconds: float) -> None:
        """The engine has been ready for so long: from a time on, its past no longer counts."""
        if seconds >= STABLE_S:
            self._recent = 0

    def next_delay(self, clean: bool) -> float | None:
        """Seconds to wait before the next start; None: it stays down."""
        spec, policy = self._spec, self._spec.restart_policy
        wanted = policy == "always" or (policy == "on-failure" and not clean)
        if not wanted or self._recent >= spec.max_restarts:
            return None
        delay = min(spec.restart_backoff_initial * 2.0**self._recent, spec.restart_backoff_max)
        self._recent += 1
        self.total += 1
        return float(delay)


class Health:
    """Judges one engine's probes over time."""

    def __init__(self, spec: Spec, now: float) -> None:
        self._spec = spec
        self._started = now
        self._failing_since: float | None = None
        self._failures = 0
        self._stuck_since: float | None = None
        self._progress: float | None = None
        self._counted: float | None = None
        self._moved_at: float | None = None
        self._working = False
        self._why = ""
        self.ready_since: float | None = None

    @property
    def state(self) -> str:
        """`starting`, `ready` or `unhealthy`. One failed probe alone is no illness."""
        if self.ready_since is None:
            return "starting"
        return "unhealthy" if self._failures > 1 else "ready"

    @property
    def reason(self) -> str | None:
        """What is wrong with an unhealthy engine."""
        return self._why if self.state == "unhealthy" else None

    def sampled(self, now: float, progress: float | None, running: float) -> None:
        """Take in the engine's counters, and how many requests it works on; None: not known."""
        if progress is None:
            return
        began = running > 0 and not self._working
        if began or (self._counted is not None and progress != self._counted):
            self._moved_at = now
        self._counted, self._working = progress, running > 0

    def busy(self, now: float) -> bool:
        """Whether tokens came lately, or requests for some."""
        return self._moved_at is not None and now - self._moved_at <= BUSY_S

    def late(self, now: float, why: str) -> None:
        """Take in a probe that got no answer in time: no failure while tokens come, since an
        engine that serves thousands of requests answers late.
        """
        if self.ready_since is not None and self.busy(now):
            self._failures, self._failing_since = 0, None
        else:
            self.failed(now, why)

    def failed(self, now: float, why: str) -> None:
        """Take in a probe that showed that something is wrong."""
        self._why = why
        self._failures += 1
        self._failing_since = now if self._failing_since is None else self._failing_since

    def alive(self, now: float, waiting: float, progress: float | None) -> None:
        """Take in a probe that was answered as it should be (the first time: with a reply)."""
        self._failures, self._failing_since = 0, None
        self.ready_since = now if self.ready_since is None else self.ready_since
        stuck = waiting > 0 and progress is not None and progress == self._progress
        self._stuck_since = (self._stuck_since or now) if stuck else None
        self._progress = progress

    def reason_to_restart(self, now: float) -> str | None:
        """Why waiting longer is pointless, or None."""
        spec = self._spec
        if self.ready_since is None:
            late = now - self._started >= spec.readiness_timeout
            return "not ready after %g s" % spec.readiness_timeout if late else None
        if self._failing_since is not None and self._failures > 1:
            late = now - self._failing_since >= spec.unhealthy_restart_after
            said = "unhealthy for %g s: %s" % (spec.unhealthy_restart_after, self._why)
            return said if late else None
        if spec.progress_timeout and self._stuck_since is not None:
            late = now - self._stuck_since >= spec.progress_timeout
            said = "no progress for %g s while requests wait" % spec.progress_timeout
            return said if late else None
        return None

    def next_probe_s(self) -> float:
        """Seconds until the next probe is due."""
        spec = self._spec
        if self.ready_since is None:
            return spec.startup_probe_interval
        if self._failures:
            return min(RECHECK_S, spec.probe_interval)
        return min(spec.probe_interval, (spec.progress_timeout or 3 * spec.probe_interval) / 3)


class Contact:
    """Judges over time whether the collector, and the router with it, may still send requests
    here. The router ends with the collector's program; one that cannot be reached from here may be
    alive, and takes a replica that is silent out of the router.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._silence_s = max(STALE_S, 3 * heartbeat_s) + ROUTER_FOLLOWS_S
        self._failing_since: float | None = None
        self._ended_since: float | None = None

    def answered(self) -> None:
        """It took a report."""
        self._failing_since = self._ended_since = None

    def failed(self, now: float, ended: bool) -> None:
        """It did not; `ended`: nobody listens there, it said that it has shut down, or that it
        knows no such replica.
        """
        self._failing_since = now if self._failing_since is None else self._failing_since
        if not ended:
            self._ended_since = None
        elif self._ended_since is None:
            self._ended_since = now

    def gone(self, now: float) -> bool:
        """Whether, as far as can be known from here, nobody sends requests here any more."""
        if self._failing_since is None:
            return False
        ended = self._ended_since is not None and now - self._ended_since >= COLLECTOR_ENDED_S
        return ended or now - self._failing_since >= self._silence_s


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus text to name → sum over its labels."""
    found = {}  # type: dict[str, float]
    for line in text.splitlines():
        match = re.match(r"([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)", line)
        if match:
            try:
                found[match.group(1)] = found.get(match.group(1), 0.0) + float(match.group(2))
            except ValueError:
                continue
    return found


def ray_gpus(text: str) -> float | None:
    """How many GPUs `ray status` says that the cluster has; None: it does not say."""
    found = re.search(r"[\d.]+/([\d.]+) GPU\b", text)
    return float(found.group(1)) if found else None


class RayNodes:
    """Judges what Ray says of its nodes over time: whether all were ever there, and still are."""

    def __init__(self, ray: dict[str, Any]) -> None:
        self._ray = ray
        self._missing_since: float | None = None
        self.complete = False
        self.lost: str | None = None

    def saw(self, gpus: float | None, now: float) -> None:
        """Take in one answer; None: Ray did not say."""
        enough = gpus is not None and gpus >= self._ray["gpus"]
        self.complete = self.complete or enough
        self._missing_since = (self._missing_since or now) if self.complete and not enough else None
        if self._missing_since and now - self._missing_since >= self._ray["status_grace_s"]:
            has = "none" if gpus is None else "%g" % gpus
            self.lost = "Ray lost nodes: %s of %d GPUs are left" % (has, self._ray["gpus"])

    def next_question_s(self) -> float:
        """Seconds until Ray is asked again."""
        hurry = not self.complete or self._missing_since is not None
        every_s = float(self._ray["probe_interval_s"])
        return min(1.0, every_s) if hurry else every_s

    def wait_until_complete(self, stopped: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for all nodes: an engine that starts without them fails."""
        deadline = time.monotonic() + timeout_s
        while not self.complete and not stopped() and time.monotonic() < deadline:
            time.sleep(0.2)
        return self.complete


def watch_nodes(nodes: RayNodes, ray: dict[str, Any], env: dict[str, str]) -> None:
    """Ask Ray, now and then, until nodes that were there are missing for too long."""
    while nodes.lost is None:
        nodes.saw(_ask_ray(ray["probe_timeout_s"], env), time.monotonic())
        time.sleep(nodes.next_question_s())


def _ask_ray(limit_s: float, env: dict[str, str]) -> float | None:
    quiet, known = subprocess.DEVNULL, dict(os.environ, **env)
    try:
        said = subprocess.check_output(["ray", "status"], stderr=quiet, timeout=limit_s, env=known)
    except Exception:  # noqa: BLE001 - no answer, whatever kept it away
        return None
    return ray_gpus(said.decode("utf-8", "replace"))


def diagnose(patterns: list[dict[str, Any]], tail: str) -> dict[str, Any] | None:
    """The first known cause of failure that a line of the log's tail shows."""
    lines = tail.splitlines()
    for known in patterns:
        if any(re.search(known["pattern"], line) for line in lines):
            return dict(known)
    return None


# -- talking HTTP ------------------------------------------------------------------------


class Http:
    """Requests to one place, without proxies; `interrupt` ends the one that runs (signal-safe)."""

    def __init__(self, key: str | None) -> None:
        self._headers = {"Authorization": "Bearer " + key} if key else {}
        self._connection: http.client.HTTPConnection | None = None

    def send(
        self, url: str, timeout_s: float, body: dict[str, Any] | None = None
    ) -> tuple[int, bytes]:
        """GET, or POST where there is a body. Raises OSError when no reply comes."""
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port or 80, timeout=timeout_s
        )
        self._connection = connection
        try:
            headers = dict(self._headers, Connection="close")
            if body is None:
                connection.request("GET", parts.path, headers=headers)
            else:
                headers["Content-Type"] = "application/json"
                connection.request("POST", parts.path, json.dumps(body).encode(), headers)
            reply = connection.getresponse()
            return reply.status, reply.read(READ_LIMIT_BYTES)
        except http.client.HTTPException as error:
            raise ConnectionError("no HTTP reply: %r" % error) from error
        finally:
            self._connection = None
            connection.close()

    def interrupt(self) -> None:
        """Make a request that waits for its reply fail at once."""
        waiting = self._connection.sock if self._connection is not None else None
        if waiting is not None:
            with contextlib.suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)


class Reporter(threading.Thread):
    """Tells the collector the latest state: changes at once, else every heartbeat."""

    def __init__(self, spec: Spec, fields: dict[str, Any]) -> None:
        super().__init__(daemon=True, name="reporter")
        self._spec = spec
        self._http = Http(read_key(spec.collector_key_file))
        self._fields = fields
        self._url: str | None = None
        self._changed = threading.Condition()
        self._version = self._acknowledged = 0
        self._sequence = 0
        self._contact = Contact(spec.heartbeat_seconds)
        self._complaint = ""
        self.drained = False

    def update(self, **fields: Any) -> None:
        """Report these fields from now on."""
        with self._changed:
            if any(self._fields.get(name) != value for name, value in fields.items()):
                self._fields = dict(self._fields, **fields)
                self._version += 1
                self._changed.notify_all()

    def note(self, **fields: Any) -> None:
        """The same, but it can wait for the next heartbeat."""
        with self._changed:
            self._fields = dict(self._fields, **fields)

    @property
    def collector_gone(self) -> bool:
        """Whether nobody takes reports, nor sends requests here: see `Contact.gone`."""
        return self._contact.gone(time.monotonic())

    def flush(self, timeout_s: float, give_up: Callable[[], bool]) -> bool:
        """Wait until the latest state has been acknowledged; False: it has not been."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._acknowledged < self._version:
                if time.monotonic() >= deadline or give_up():
                    return False
                self._changed.wait(0.2)
        return True

    def run(self) -> None:
        """Send for ever; the thread ends with the process."""
        while True:
            with self._changed:
                self._sequence += 1
                version, report = self._version, dict(self._fields, sequence=self._sequence)
            if report.get("sampled_at") is not None:
                report["sample_age_s"] = max(0.0, time.monotonic() - report["sampled_at"])
            sent = self._send(report)
            with self._changed:
                if sent:
                    self._acknowledged = version
                    self._changed.notify_all()
                draining = report["state"] == "draining" and not self.drained
                rest = DRAIN_POLL_S if draining else self._spec.heartbeat_seconds
                rest = rest if sent else min(rest, RETRY_REPORT_S)
                if self._version == version:
                    self._changed.wait(rest)

    def _send(self, report: dict[str, Any]) -> bool:
        unknown = False
        try:
            if self._url is None:
                with open(self._spec.endpoint_file, encoding="utf-8") as file:
                    self._url = json.load(file)["collector_url"] + "/v1/report"
            status, answer = self._http.send(self._url, REPORT_TIMEOUT_S, report)
            if status != 200:
                unknown = status in (404, 409)  # it knows no such replica, and sends nothing here
                raise ConnectionError(
                    "status %d: %s" % (status, answer[:300].decode("utf-8", "replace"))
                )
            if report["state"] == "draining" and json.loads(answer).get("drained"):
                self.drained = True
        except Exception as error:  # noqa: BLE001 - this thread is the replica's only word
            self._url = None  # it may have moved: read the file again
            ended = isinstance(error, (ConnectionRefusedError, FileNotFoundError))
            self._contact.failed(time.monotonic(), ended or unknown)
            if repr(error) != self._complaint:
                log("cannot report to the collector: %r" % error)
            self._complaint = repr(error)
            return False
        self._contact.answered()
        self._complaint = ""
        return True


def read_key(path: str) -> str:
    """The key in a file."""
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


# -- locks, ports and processes ----------------------------------------------------------


def lock_folder() -> str:
    """Where this user's locks on this machine are.

    Everybody may write beside it: a name that somebody else took first is left to them.
    """
    name = os.path.join(tempfile.gettempdir(), "domyn-swarm-%d" % os.getuid())
    for folder in [name] + ["%s-%d" % (name, number) for number in range(1, 100)]:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        seen = os.lstat(folder)
        private = stat.S_ISDIR(seen.st_mode) and not seen.st_mode & 0o077
        if private and seen.st_uid == os.getuid():
            return folder
    return tempfile.mkdtemp(prefix="domyn-swarm-")


def lock(folder: str, name: str) -> int | None:
    """An open file: whoever has it open has the lock, and the kernel frees it with the last of
    them. None: others have it.
    """
    file = os.open(os.path.join(folder, name), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def allow_many_files() -> None:
    """Raise the limit of open files, for the engine: each of its requests has one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Ports:
    """Free ports; one that was given out stays locked against other watchdogs of this machine."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._locks: dict[int, int] = {}
        self._folder = lock_folder()

    def pick(self, first: int) -> int:
        """The port already held if it is still free, else the first free one from `first` on."""
        candidates: list[int] = [*self._locks, *range(first, 65_536)]
        for port in candidates:
            if (port in self._locks or self._lock(port)) and self._free(port):
                return port
        raise OSError("no free port from %d on" % first)

    def _lock(self, port: int) -> bool:
        file = lock(self._folder, "port-%d" % port)
        if file is not None:
            self._locks[port] = file
        return file is not None

    def _free(self, port: int) -> bool:
        found = socket.getaddrinfo(self._host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError:
                return False
        return True


class Guard:
    """A child that waits for the watchdog's death and then kills the engine's process group.

    The parent-death signal reaches only the engine's first process; engines have more.
    """

    def __init__(self) -> None:
        read_end, self._write_end = os.pipe()
        if os.fork() == 0:
            os.close(self._write_end)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            os.setpgid(0, 0)
            self._wait(read_end)
            os._exit(0)
        os.close(read_end)

    @staticmethod
    def _wait(read_end: int) -> None:
        group = 0
        while True:
            message = os.read(read_end, 64)
            if not message:
                break
            group = int(message.decode().split()[-1])
        if group:
            kill_group(group, signal.SIGKILL)

    def watch(self, group: int) -> None:
        """Guard this process group from now on; 0: none."""
        os.write(self._write_end, b"%d\n" % group)


def kill_group(group: int, number: int) -> None:
    """Send a signal to a process group that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def becoming_engine(parent: int) -> Callable[[], None]:
    """What a new child calls: a group of its own, killed by the kernel when its parent dies.

    Not a session of its own: who leads a session is a program of ours, told to stop directly.
    """
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):  # not Linux; the guard is there
        prctl = None

    def call() -> None:
        os.setpgid(0, 0)
        if prctl is not None:
            prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return call


class Engine:
    """One engine process and all its descendants (a process group of its own)."""

    def __init__(self, spec: Spec, port: int, key: str | None, guard: Guard) -> None:
        self._guard = guard
        places = {"{host}": spec.host, "{port}": str(port)}
        places["{node_port}"] = os.environ.get("DOMYN_SWARM_NODE_PORT", "")
        filled = list(spec.argv)
        for place, value in places.items():
            filled = [one.replace(place, value) for one in filled]
        env = dict(os.environ, **spec.env)
        if spec.key_env and key:
            env[spec.key_env] = key
        os.makedirs(os.path.dirname(spec.engine_log), mode=0o700, exist_ok=True)
        output = os.open(spec.engine_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._log, self._log_start = spec.engine_log, os.fstat(output).st_size
        try:
            self._process = subprocess.Popen(
                filled,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=becoming_engine(os.getpid()),  # noqa: PLW1509 - it only calls prctl
            )
        finally:
            os.close(output)
        self.pid = self._process.pid
        guard.watch(self.pid)

    def poll(self) -> int | None:
        """The exit code (128 + signal) once it has ended; what is left of its group is killed."""
        if self._process.returncode is None:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return None
            kill_group(self.pid, signal.SIGKILL)  # before it is reaped: the number is still its own
            self._guard.watch(0)
            self._process.wait()
        code = int(self._process.returncode)
        return 128 - code if code < 0 else code

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        if self.poll() is None:
            kill_group(self.pid, number)

    def log_tail(self) -> str:
        """The end of what this start of the engine printed; empty where it cannot be read."""
        with contextlib.suppress(OSError), open(self._log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
        return ""


# -- the watchdog ------------------------------------------------------------------------


class Watchdog:
    """Runs engines one after the other until it is told to stop or restarting cannot help."""

    def __init__(self, spec: Spec, key: str | None, reporter: Reporter, guard: Guard) -> None:
        self._spec = spec
        self._key = key
        self._http = Http(key)
        self._reporter = reporter
        self._guard = guard
        self._ports = Ports(spec.host)
        self._nodes = RayNodes(spec.ray) if spec.ray else None
        self._restarts = Restarts(spec)
        self._stops = 0
        self._stopped_at = float("-inf")
        self._sampled_at = 0.0
        self._base = ""
        self._state = "starting"
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake up

    def _on_stop(self, *_: object) -> None:
        now = time.monotonic()
        if now - self._stopped_at >= REPEATED_S:
            self._stops, self._stopped_at = self._stops + 1, now
        self._http.interrupt()

    def _sleep(self, seconds: float) -> None:
        """Rest, but wake up at once for a signal (SIGTERM, or the engine's end)."""
        select.select([self._wake], [], [], max(0.0, seconds))
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 512)

    def _enter(self, state: str, **fields: Any) -> None:
        if state != self._state or fields:
            log("%s %s" % (state, " ".join("%s=%s" % item for item in sorted(fields.items()))))
        self._state = state
        if state in WITHOUT_ENGINE:  # the figures were those of one that has ended
            self._reporter.note(sampled_at=None, **dict.fromkeys(self._spec.reported_metrics))
        self._reporter.update(state=state, restarts=self._restarts.total, **fields)

    def run(self) -> int:
        """Until the end; returns the exit code."""
        if self._nodes is not None:
            watched = (self._nodes, self._spec.ray, self._spec.env)
            threading.Thread(target=watch_nodes, args=watched, daemon=True, name="ray").start()
        while True:
            if self._nodes is not None and not self._join_ray(self._nodes):
                return self._lose_node("the other nodes did not join Ray in time")
            try:
                engine = self._start()
            except OSError as error:
                why_not = "cannot start the engine: %s" % error
                if error.errno not in PASSING or self._stops:
                    return self._end("failed", why_not)
                self._enter("restarting", reason=why_not)
                self._rest(self._spec.restart_backoff_max)
                continue
            why = self._watch(engine)
            if self._stops:
                self._drain(engine)
                return self._end("exited", "stopped as asked", exit_code=engine.poll())
            if self._nodes is not None and self._nodes.lost:
                self._enter("draining", reason=self._nodes.lost)
                self._stop_engine(engine)
                return self._lose_node(self._nodes.lost)
            code = engine.poll()
            if code is None:
                log("restarting the engine: %s" % why)
                self._enter("restarting", reason=why)  # the router lets go of it first
                self._stop_engine(engine)
                code = engine.poll()
            known = diagnose(self._spec.failure_patterns, engine.log_tail())
            clean = not why and code == 0
            reason = (known["cause"] if known else None) or why or ended_as(code)
            delay = None
            if known is None or known["retryable"]:
                delay = self._restarts.next_delay(clean)
            if delay is None:
                return self._end("exited" if clean else "failed", reason, exit_code=code)
            self._enter("restarting", reason=reason, exit_code=code, engine_pid=None)
            self._rest(delay)
            if self._stops:
                return self._end("exited", "stopped as asked", exit_code=code)

    def _join_ray(self, nodes: RayNodes) -> bool:
        grace_s = self._spec.readiness_timeout
        return bool(self._stops) or nodes.wait_until_complete(lambda: self._stops > 0, grace_s)

    def _lose_node(self, reason: str) -> int:
        """End without a final state: whoever runs this starts the replica anew, with its nodes."""
        log(reason)
        self._enter("restarting", reason=reason, engine_pid=None)
        self._reporter.flush(STOPPED_REPORT_S, lambda: self._reporter.collector_gone)
        return LOST_NODE

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stops and time.monotonic() < until:
            self._sleep(until - time.monotonic())

    def _start(self) -> Engine:
        port = self._ports.pick(self._spec.port_from)
        self._base = "http://%s:%d" % (self._spec.host, port)
        engine = Engine(self._spec, port, self._key, self._guard)
        self._enter("starting", engine_pid=engine.pid, url=self._base, http_status=None)
        return engine

    def _watch(self, engine: Engine) -> str | None:
        """Probe until the engine has ended (None), must be restarted (why), or a stop came."""
        health = Health(self._spec, time.monotonic())
        due = time.monotonic()
        while not self._stops and engine.poll() is None:
            now = time.monotonic()
            if now >= due:
                self._probe(health)
                if self._stops or engine.poll() is not None:
                    break
                now = time.monotonic()
                due = now + health.next_probe_s()
                self._judge(health)
                if health.ready_since is not None:
                    self._restarts.served(now - health.ready_since)
            why = health.reason_to_restart(now) or (self._nodes.lost if self._nodes else None)
            if why is not None:
                return why
            self._sleep(min(due - now, self._sample_if_due(health, now), 1.0))
        return None

    def _judge(self, health: Health) -> None:
        if health.state != self._state and "unhealthy" in (health.state, self._state):
            self._enter(health.state, reason=health.reason)
        else:
            self._enter(health.state)

    def _sample_if_due(self, health: Health, now: float) -> float:
        """Read the figures of an engine that is up where it is time; seconds until the next."""
        if health.ready_since is None or self._spec.metrics_path is None:
            return 1.0
        every_s = self._spec.heartbeat_seconds / SAMPLES_PER_HEARTBEAT
        if now - self._sampled_at >= every_s:
            self._sample(health, self._spec.http_timeout)
            return every_s
        return self._sampled_at + every_s - now

    def _probe(self, health: Health) -> None:
        spec = self._spec
        try:
            status, _ = self._http.send(self._base + spec.health_path, spec.http_timeout)
            self._reporter.note(http_status=status)
            wrong = None if 200 <= status < 300 else "%s answered %d" % (spec.health_path, status)
            if wrong is None and health.ready_since is None:
                wrong = self._first_request()
        except socket.timeout:
            self._reporter.note(http_status=None)
            self._sample(health, LATE * spec.http_timeout)
            said = "%s did not answer within %g s" % (spec.health_path, spec.http_timeout)
            health.late(time.monotonic(), said)
        except OSError as error:
            self._reporter.note(http_status=None)
            health.failed(time.monotonic(), "%s: %s" % (spec.health_path, error))
        else:
            if wrong is not None:
                health.failed(time.monotonic(), wrong)
                return
            waiting, progress = self._sample(health, spec.http_timeout)
            health.alive(time.monotonic(), waiting, progress)

    def _first_request(self) -> str | None:
        """What is wrong with the answer: health can say yes while the first real request kills the
        engine.
        """
        first = self._spec.first_request
        if first is None:
            return None
        status, _ = self._http.send(
            self._base + first["path"], self._spec.readiness_timeout, first["body"]
        )
        return None if status < 500 else "the first request was answered %d" % status

    def _sample(self, health: Health, timeout_s: float) -> tuple[float, float | None]:
        """Requests that wait in the engine, and its progress, which is None where it is not known;
        what was read is reported at once.
        """
        spec = self._spec
        self._sampled_at = time.monotonic()
        metrics = self._metrics(timeout_s)
        counters = [metrics[name] for name in spec.progress_metrics if name in metrics]
        progress = sum(counters) if counters else None
        running = metrics.get(spec.running_metric or "", 0.0)
        health.sampled(time.monotonic(), progress, running)
        return metrics.get(spec.waiting_metric or "", 0.0), progress

    def _metrics(self, timeout_s: float) -> dict[str, float]:
        spec = self._spec
        if spec.metrics_path is None:
            return {}
        try:
            status, text = self._http.send(self._base + spec.metrics_path, timeout_s)
        except OSError:
            return {}
        metrics = parse_metrics(text.decode("utf-8", "replace")) if status == 200 else {}
        told = {field: metrics.get(name) for field, name in spec.reported_metrics.items()}
        self._reporter.update(sampled_at=time.monotonic(), **told)
        return metrics

    def _drain(self, engine: Engine) -> None:
        """Take the replica out of the router, let its requests finish, end the engine.

        A second SIGTERM skips the waiting, unless it comes so soon that it repeats the first.
        """
        served = self._state in ("ready", "unhealthy")
        self._enter("draining")
        deadline = time.monotonic() + self._spec.drain_seconds
        idle = 0
        while served and engine.poll() is None and time.monotonic() < deadline and self._stops < 2:
            if self._reporter.drained or self._reporter.collector_gone:
                idle = idle + 1 if self._idle() else 0
                if idle > 1:  # the router may still be handing over a last one
                    break
            self._sleep(DRAIN_POLL_S)
        self._stop_engine(engine)

    def _idle(self) -> bool:
        spec = self._spec
        if spec.running_metric is None:
            return True
        metrics = self._metrics(spec.http_timeout)
        busy = metrics.get(spec.running_metric), metrics.get(spec.waiting_metric or "", 0.0)
        return busy == (0.0, 0.0)

    def _stop_engine(self, engine: Engine) -> None:
        """SIGTERM to the group, SIGKILL when the grace period is over."""
        engine.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._spec.kill_grace_seconds
        while engine.poll() is None:
            if time.monotonic() >= deadline:
                log("the engine did not end in %g s: killed" % self._spec.kill_grace_seconds)
                engine.signal(signal.SIGKILL)
            self._sleep(min(1.0, max(0.05, deadline - time.monotonic())))

    def _end(self, state: str, reason: str, exit_code: int | None = None) -> int:
        """Report a final state, also to a collector that comes late, within bounds."""
        self._enter(state, reason=reason, exit_code=exit_code, engine_pid=None)
        stops = self._stops
        wait_s = STOPPED_REPORT_S if stops else self._spec.final_report_seconds

        def give_up() -> bool:
            return self._stops > stops or (stops > 0 and self._reporter.collector_gone)

        if not self._reporter.flush(wait_s, give_up):
            log("the collector has not heard of the end")
        return 1 if state == "failed" else 0


def ended_as(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code > 128:
        with contextlib.suppress(ValueError):
            return "the engine was killed by %s" % signal.Signals(code - 128).name
    return "the engine exited with code %s" % code


def load(path: str, address: str) -> Spec:
    """The spec in a file. Raises OSError, ValueError, TypeError."""
    with open(path, encoding="utf-8") as file:
        spec = Spec(**json.load(file))
    return spec._replace(host=spec.host or address or socket.gethostname())


def end_with_input() -> None:
    """Tell this process to stop when its standard input ends: whoever started it has died."""
    while os.read(0, 512):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """Run; returns the exit code."""
    os.umask(0o077)
    allow_many_files()
    try:
        spec = load(arguments[1], "".join(arguments[2:3]))
        key = read_key(spec.key_file)
        guard = Guard()  # forks: before there are threads
        fields = {
            "replica": spec.replica,
            "state": "starting",
            "watchdog_pid": os.getpid(),
            "node": socket.gethostname(),
            "incarnation": uuid.uuid4().hex,
        }
        reporter = Reporter(spec, fields)
        watchdog = Watchdog(spec, key, reporter, guard)
    except (IndexError, OSError, ValueError, TypeError) as error:
        log("cannot start: %s: %s" % (type(error).__name__, error))
        return 2
    reporter.start()
    if arguments[3:] == ["lifeline"]:
        threading.Thread(target=end_with_input, daemon=True, name="lifeline").start()
    return watchdog.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
