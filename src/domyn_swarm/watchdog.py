"""Starts one engine, watches it, restarts it, reports on it.

Run as `watchdog.py SPEC.json [ADDRESS [lifeline]]`: by what address this node is reached where the
spec does not say; `lifeline`: it stops when its standard input ends.

Standard library only and Python 3.8 syntax: this file, `watchdog_rules.py`, `watchdog_ledger.py`
and `restart_budget.py` are copied next to the engine and run in whatever image it comes in. The
spec is built, and described, by `backends.watchdog_spec`.

Guaranteed: the engine (its whole process group) never outlives the watchdog, however that dies;
SIGTERM drains the engine before it ends; a final state is reported even to a collector that comes
late. Exit code 0: ended as asked, 1: the engine failed, 2: the spec cannot be used, 3: one of the
replica's nodes was lost, so that it must be started anew as a whole, 4: the watchdog itself failed,
by a bug or by what the system refused, which says nothing of the engine: it is to be started again,
5: on this node the engine does not get as far as to be ready, so that it may be tried on another.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import http.client
import json
import os
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
import traceback
import uuid
from typing import TYPE_CHECKING, Any, Callable
from urllib.parse import urlsplit

if TYPE_CHECKING or __package__:
    from domyn_swarm.watchdog_ledger import LAUNCH, Ledger, Phases, keep_counting
    from domyn_swarm.watchdog_rules import (
        RECHECK_S,
        Contact,
        Health,
        Json,
        RayNodes,
        Restarts,
        Spec,
        diagnose,
        parse_metrics,
        ray_gpus,
    )
else:  # the other files lie beside this one, which is no reason for the path to say so
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from watchdog_ledger import *  # noqa: F403
    from watchdog_rules import *  # noqa: F403

REPORT_TIMEOUT_S = 5.0
RETRY_REPORT_S = 1.0
DRAIN_POLL_S = 0.2
STOPPED_REPORT_S = 5.0  # how long the report of a requested EXITED is retried
REPEATED_S = 15.0  # a SIGTERM so soon after another repeats it: schedulers send it again
READ_BYTES = 1 << 20  # within `READS_EVERY_S`; an engine that reads less loads no model
READS_EVERY_S = 5.0
LAST_WORDS_S = 60.0  # output from longer before its end does not explain it
LATE = 2.5  # times `http_timeout`: how long metrics may take when health is late
SAMPLES_PER_HEARTBEAT = 1.25  # so that no reported metric is older than a heartbeat
MOST_FILES = 65_536
WITHOUT_ENGINE = ("starting", "restarting", "exited", "failed")
LOG_TAIL_BYTES = 65_536
READ_LIMIT_BYTES = 4_000_000
FAILED, UNUSABLE, LOST_NODE, BROKEN, ELSEWHERE = 1, 2, 3, 4, 5  # exit codes
# What a disk or a system refuses for a while
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENOMEM)


def log(text: str) -> None:
    """Write one line with the time to stderr; dropped if the disk is full."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError):
        os.write(2, ("%s %s\n" % (stamp, text)).encode("utf-8", "backslashreplace"))


def watch_nodes(nodes: RayNodes, env: dict[str, str], limit_s: float) -> None:
    """Ask Ray repeatedly, until nodes that had joined are missing for too long."""
    quiet, known = subprocess.DEVNULL, dict(os.environ, **env)
    while nodes.lost is None:
        said = b""  # no answer, whatever the cause
        with contextlib.suppress(Exception):
            asked = ["ray", "status"]
            said = subprocess.check_output(asked, stderr=quiet, timeout=limit_s, env=known)
        nodes.saw(ray_gpus(said.decode("utf-8", "replace")), time.monotonic())
        time.sleep(nodes.next_question_s())


class Http:
    """Requests to one place, without proxies; `interrupt` ends the running one (signal-safe)."""

    def __init__(self, key: str | None) -> None:
        self._headers = {"Authorization": "Bearer " + key} if key else {}
        self._connection: http.client.HTTPConnection | None = None

    def send(self, url: str, timeout_s: float, body: Json | None = None) -> tuple[int, bytes]:
        """GET, or POST where there is a body. Raises OSError when no reply comes."""
        place = urlsplit(url)
        host, port = place.hostname or "", place.port or 80
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        self._connection = connection
        try:
            headers = dict(self._headers, Connection="close")
            if body is None:
                connection.request("GET", place.path, headers=headers)
            else:
                headers["Content-Type"] = "application/json"
                connection.request("POST", place.path, json.dumps(body).encode(), headers)
            reply = connection.getresponse()
            return reply.status, reply.read(READ_LIMIT_BYTES)
        except http.client.HTTPException as error:
            raise ConnectionError("no HTTP reply: %r" % error) from error
        finally:
            self._connection = None
            connection.close()

    def interrupt(self) -> None:
        """Make a request that waits for its reply fail immediately."""
        waiting = self._connection.sock if self._connection is not None else None
        if waiting is not None:
            with contextlib.suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)


class Reporter(threading.Thread):
    """Reports the latest state to the collector: changes at once, otherwise every heartbeat."""

    def __init__(self, spec: Spec, fields: Json) -> None:
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
        self.drained = self.orphaned = False

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
        """Whether nothing takes reports, or sends requests here: see `Contact.gone`."""
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

    def _send(self, report: Json) -> bool:
        unknown = False
        try:
            if self._url is None:
                with open(self._spec.endpoint_file, encoding="utf-8") as file:
                    self._url = json.load(file)["collector_url"] + "/v1/report"
            status, answer = self._http.send(self._url, REPORT_TIMEOUT_S, report)
            if status != 200:
                unknown = status in (404, 409)  # it knows no such replica, and sends nothing here
                said = answer[:300].decode("utf-8", "replace")
                raise ConnectionError("status %d: %s" % (status, said))
            if report["state"] == "draining" and json.loads(answer).get("drained"):
                self.drained = True
        except Exception as error:  # noqa: BLE001 - this thread is the replica's only word
            self._url = None  # it may have moved: read the file again
            ended = isinstance(error, (ConnectionRefusedError, FileNotFoundError))
            self._contact.failed(time.monotonic(), ended or unknown)
            self._end_if_orphaned()
            if repr(error) != self._complaint:
                log("cannot report to the collector: %r" % error)
            self._complaint = repr(error)
            return False
        self._contact.answered()
        self._complaint = ""
        return True

    def _end_if_orphaned(self) -> None:
        """End this process, once, if the endpoint is not brought back: its GPUs would serve no
        request.
        """
        after_s = self._spec.orphaned_seconds
        if self.orphaned or after_s is None or not self._contact.ended(time.monotonic(), after_s):
            return
        self.orphaned = True
        log("the endpoint has been gone for %g s and was not restarted: ending" % after_s)
        os.kill(os.getpid(), signal.SIGTERM)


def read_key(path: str) -> str:
    """The key in a file."""
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def lock_folder() -> str:
    """The folder of this user's locks on this machine. Everybody may write beside it: a name that
    another user created first is left alone.
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
    """An open file that holds the lock as long as any process has it open: the kernel frees it with
    the last one. None: the lock is taken.
    """
    file = os.open(os.path.join(folder, name), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def allow_many_files() -> None:
    """Raise the limit of open files for the engine: each of its requests needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def lock_port(port: int) -> int | None:
    """A lock on a port, an open file that this process has until its end; None: another has it.

    On Linux a name in the abstract namespace of sockets: who shares the ports shares the names. A
    file would not do: a site may give each job a /tmp of its own, and engines that load for minutes
    before they bind their port would be given the same one.
    """
    if not sys.platform.startswith("linux"):
        return lock(lock_folder(), "port-%d" % port)
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind("\0domyn-swarm-port-%d" % port)
    except OSError as error:
        name.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return name.detach()


class Ports:
    """Free ports; an assigned one stays locked against other watchdogs of this machine."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._locks: dict[int, int] = {}

    def pick(self, first: int) -> int:
        """The port already held if it is still free, else the first free one from `first` on."""
        candidates: list[int] = [*self._locks, *range(first, 65_536)]
        for port in candidates:
            if port not in self._locks:
                held = lock_port(port)
                if held is None:
                    continue
                self._locks[port] = held
            if self._free(port):
                return port
        raise OSError("no free port from %d on" % first)

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
        self._group = 0
        self._start()

    def _start(self) -> None:
        read_end, self._write_end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._write_end)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            os.setpgid(0, 0)
            group, message = 0, b"0"
            while message:
                group = int(message.split()[-1])
                message = os.read(read_end, 64)
            if group:
                kill_group(group, signal.SIGKILL)
            os._exit(0)
        os.close(read_end)

    def watch(self, group: int) -> None:
        """Guard this process group from now on; 0: none."""
        self._group = group
        with contextlib.suppress(BrokenPipeError):  # it was killed: see `keep`
            os.write(self._write_end, b"%d\n" % group)

    def keep(self) -> None:
        """Restart it if it was killed."""
        if os.waitpid(self._pid, os.WNOHANG) != (0, 0):
            log("the guard was killed and starts again")
            os.close(self._write_end)
            self._start()
            self.watch(self._group)


def kill_group(group: int, number: int) -> None:
    """Send a signal to a process group that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def becoming_engine(parent: int) -> Callable[[], None]:
    """Run in a new child: a process group of its own, killed by the kernel when its parent dies.
    Not a session of its own: only our programs lead sessions, and they are signalled directly.
    """
    system = ctypes.CDLL(None)

    def call() -> None:
        os.setpgid(0, 0)
        with contextlib.suppress(AttributeError):  # not Linux; the guard is there
            system.prctl(1, signal.SIGKILL)
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
        self._log, size = spec.engine_log, os.fstat(output).st_size
        self._sizes = [(time.monotonic(), size)]  # of the log, over the last minute
        self._well_at, self._well_next = size, 0
        self.phases = Phases(spec.start_phases, spec.engine_log, size)
        self._reads: dict[int, int] = {}
        self._reads_at = 0.0
        self._memory_kills = memory_kills()
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
        """The exit code (128 + signal) once it has ended; the rest of its group is killed."""
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

    def printed(self, now: float) -> bool:
        """Whether its log has grown since the last check."""
        before = size = self._sizes[-1][1]
        with contextlib.suppress(OSError):
            size = os.stat(self._log).st_size
        self._sizes.append((now, size))
        while len(self._sizes) > 1 and self._sizes[1][0] <= now - LAST_WORDS_S:
            del self._sizes[0]
        return size > before

    def read(self, now: float) -> bool:
        """Whether it has recently read as much as an engine that loads a model does."""
        if now - self._reads_at < READS_EVERY_S:
            return False
        before, self._reads, self._reads_at = self._reads, group_reads(self.pid), now
        return sum(self._reads.values()) - sum(before.values()) >= READ_BYTES

    def was_well(self, now: float) -> None:
        """Record that it answered correctly: earlier output does not explain its end, nor, the
        first time, does that of its start.
        """
        self.printed(now)
        size = self._sizes[-1][1]
        self._well_at, self._well_next = self._well_next or size, size

    def killed_for_memory(self) -> bool:
        """Whether the kernel has killed for memory here since it began."""
        return memory_kills() > self._memory_kills

    def last_words(self, lately: bool) -> str:
        """The end of its output since it last answered correctly or began; `lately`: just before
        its end.
        """
        with contextlib.suppress(OSError), open(self._log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(self._well_at, self._sizes[0][1] if lately else 0)
            file.seek(max(begin, size - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
        return ""


def memory_kills(own: str = "/proc/self/cgroup", mounted: str = "/sys/fs/cgroup") -> int:
    """How often the kernel has killed a process of this one's control group because the memory of
    the group, or of one above it, was full; 0 where it does not say.
    """
    with contextlib.suppress(OSError, ValueError), open(own, encoding="utf-8") as groups:
        for line in groups:
            _, kinds, group = line.rstrip("\n").split(":", 2)
            if not kinds:
                place, name = mounted, "memory.events"
            elif "memory" in kinds.split(","):
                place, name = mounted + "/memory", "memory.oom_control"
            else:
                continue
            for folder in (place + group, place):  # a container may see its own as the first one
                with contextlib.suppress(OSError), open(folder + "/" + name, "rb") as file:
                    counts = dict(one.split()[:2] for one in file if len(one.split()) > 1)
                    if b"oom_kill" in counts:
                        return int(counts[b"oom_kill"])
    return 0


def group_reads(group: int) -> dict[int, int]:
    """How many bytes each process of a group has read; processes that the system does not report
    are left out.
    """
    found = {}
    with contextlib.suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open("/proc/%s/stat" % name, "rb") as file:
                    if int(file.read().rpartition(b")")[2].split()[2]) != group:
                        continue
                with open("/proc/%s/io" % name, "rb") as file:
                    counts = dict(line.split(b": ") for line in file.read().splitlines())
                found[int(name)] = max(int(counts[b"read_bytes"]), int(counts[b"rchar"]))
    return found


class Watchdog:
    """Runs engines one after the other until it is stopped or restarting cannot help."""

    def __init__(
        self, spec: Spec, key: str | None, reporter: Reporter, guard: Guard, ledger: Ledger
    ) -> None:
        self._spec = spec
        self._key = key
        self._http = Http(key)
        self._reporter = reporter
        self._ledger = ledger
        self._counted: float | None = None  # of tokens, when the engine was last busy or idle
        self._guard = guard
        self._ports = Ports(spec.host)
        self._nodes = RayNodes(spec.ray) if spec.ray else None
        self._health = Health(spec, time.monotonic())
        self._restarts = Restarts(spec)
        self._stops = self._early_deaths = 0
        self._stopped_at = float("-inf")
        self._sampled_at = 0.0
        self._base = ""
        self._overtime = False  # whether it was reported that the engine loads for so long
        self._state = "starting"
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only used to wake up

    def _on_stop(self, *_: object) -> None:
        now = time.monotonic()
        if now - self._stopped_at >= REPEATED_S:
            self._stops, self._stopped_at = self._stops + 1, now
        self._http.interrupt()

    def _sleep(self, seconds: float) -> None:
        """Sleep, but wake up at once for a signal (SIGTERM, or the engine's end)."""
        select.select([self._wake], [], [], max(0.0, seconds))
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 512)

    def _enter(self, state: str, **fields: Any) -> None:
        if state != self._state or fields:
            log("%s %s" % (state, " ".join("%s=%s" % item for item in sorted(fields.items()))))
        self._state = state
        if state in WITHOUT_ENGINE:  # the sampled values were those of an ended engine
            figures = dict.fromkeys(self._spec.reported_metrics)
            self._reporter.note(sampled_at=None, loading=False, **figures)
            self._counted = None
            self._ledger.note(state=state, phase=LAUNCH if state == "starting" else "", busy=None)
        self._ledger.note(state=state)
        self._reporter.update(state=state, restarts=self._restarts.total, **fields)

    def run(self) -> int:
        """Run until the end; return the exit code."""
        grace_s = self._spec.readiness_timeout
        if self._nodes is not None and self._spec.ray is not None:
            asked = (self._nodes, self._spec.env, self._spec.ray["probe_timeout_s"])
            threading.Thread(target=watch_nodes, args=asked, daemon=True, name="ray").start()
        while True:
            if self._nodes is not None and not self._nodes.joined(lambda: self._stops > 0, grace_s):
                return self._hand_over("the other nodes did not join Ray in time", LOST_NODE)
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
                return self._hand_over(self._nodes.lost, LOST_NODE)
            over = self._after(engine, why)
            if over is not None:
                return over

    def _after(self, engine: Engine, why: str | None) -> int | None:
        """Decide whether and when an engine that ended, or must (`why`), is restarted; return the
        exit code if it is not.
        """
        code = engine.poll()
        if code is None:
            log("restarting the engine: %s" % why)
            self._enter("restarting", reason=why)  # the router removes it first
            self._stop_engine(engine)
            code = engine.poll()
        served, clean = self._health.ready_since is not None, not why and code == 0
        words, killed = engine.last_words(lately=not why), bool(why) or (code or 0) > 128
        known = diagnose(self._spec.failure_patterns, words, served, killed)
        if why:  # what only makes programs give up has not made this one
            known = known if known and known["retryable"] else None
        reason = why or ended_as(code)
        if not why and code == 128 + signal.SIGKILL and engine.killed_for_memory():
            reason += " for its memory: raise memory_gb, or load a smaller model"
        if known is not None:
            reason = known["cause"] + (" (%s)" % why if why else "")
        hopeless = known is not None and not known["retryable"] and not served
        slow, delay = bool(why) and not served, None
        if not hopeless:
            delay = self._restarts.next_delay(clean, slow)
        self._early_deaths = 0 if served or why else self._early_deaths + 1
        if delay is None:
            ended = self._end("exited" if clean else "failed", reason, exit_code=code)
            return ELSEWHERE if hopeless and self._spec.early_deaths else ended
        if self._early_deaths == self._spec.early_deaths:
            where = socket.gethostname()
            reason = "%s, %d times on %s as it started" % (reason, self._early_deaths, where)
            return self._hand_over(reason, ELSEWHERE)
        self._enter("restarting", reason=reason, exit_code=code, engine_pid=None)
        self._rest(delay)
        return self._end("exited", "stopped as asked", exit_code=code) if self._stops else None

    def _hand_over(self, reason: str, code: int) -> int:
        """End without a final state: the caller restarts the replica, on other nodes."""
        log(reason)
        self._enter("restarting", reason=reason, engine_pid=None)
        self._reporter.flush(STOPPED_REPORT_S, lambda: self._stops > 0)
        return code

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
        health, self._overtime = Health(self._spec, time.monotonic()), False
        self._health = health
        due = time.monotonic()
        while not self._stops and engine.poll() is None:
            self._guard.keep()
            now = time.monotonic()
            if now >= due:
                self._probe(health)
                if self._stops or engine.poll() is not None:
                    break
                now = time.monotonic()
                due = now + health.next_probe_s()
                self._judge(health)
                if health.well:
                    engine.was_well(now)
            if engine.printed(now) or (health.ready_since is None and engine.read(now)):
                health.loaded_at = now
                if health.ready_since is None:
                    self._ledger.note(phase=engine.phases.look())
            self._reporter.update(loading=health.loads(now))
            overtime = health.overtime(now)
            if overtime is not None and not self._overtime:
                self._overtime = True
                self._enter(self._state, reason=overtime)
            why = health.reason_to_restart(now) or (self._nodes.lost if self._nodes else None)
            if why is not None:
                return why
            rest_s = self._sample_if_due(health, now)
            if health.ready_since is not None:
                self._restarts.served(now - health.ready_since, health.answered)
            self._sleep(min(due - now, rest_s, 1.0))
        return None

    def _judge(self, health: Health) -> None:
        changed = health.state != self._state
        said = changed and (self._overtime or "unhealthy" in (health.state, self._state))
        self._overtime = self._overtime and not changed
        self._enter(health.state, **({"reason": health.reason} if said else {}))

    def _sample_if_due(self, health: Health, now: float) -> float:
        """Sample a running engine's metrics if that is due; return the seconds until the next
        sample.
        """
        if health.ready_since is None or self._spec.metrics_path is None:
            return 1.0
        every_s = self._spec.heartbeat_seconds / SAMPLES_PER_HEARTBEAT
        if not health.answered:  # an early crash must not hide that requests were answered
            every_s = min(every_s, RECHECK_S)
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
            refused = 400 <= status < 500 and status not in (408, 425, 429)
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
                health.failed(time.monotonic(), wrong, refused=refused)
                return
            waiting, progress = self._sample(health, spec.http_timeout)
            health.alive(time.monotonic(), waiting, progress)

    def _first_request(self) -> str | None:
        """The error of the first request, if any: health can be fine while the first real request
        kills the engine. A server that refuses our key is another program, which took the port
        while the engine loads.
        """
        first = self._spec.first_request
        if first is None:
            return None
        url, limit_s = self._base + first["path"], self._spec.readiness_timeout
        status, _ = self._http.send(url, limit_s, first["body"])
        if status in (401, 403):
            return "another program answers at %s: it refused our key (%d)" % (self._base, status)
        return None if status < 500 else "the first request was answered %d" % status

    def _sample(self, health: Health, timeout_s: float) -> tuple[float, float | None]:
        """Read the waiting requests and the progress of the engine; None: not known. The values are
        reported at once.
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
        figures = {field: metrics.get(name) for field, name in spec.reported_metrics.items()}
        self._reporter.update(sampled_at=time.monotonic(), **figures)
        if metrics:
            self._ledger.note(busy=self._busy(metrics))
        return metrics

    def _busy(self, metrics: dict[str, float]) -> bool | None:
        """Whether requests are in the engine, or came and went since the last sample; None: it does
        not report them.
        """
        spec = self._spec
        gauges = [metrics.get(name or "") for name in (spec.running_metric, spec.waiting_metric)]
        counters = [metrics[name] for name in spec.progress_metrics if name in metrics]
        if gauges[0] is None and not counters:
            return None
        before, self._counted = self._counted, sum(counters) if counters else None
        return any(gauges) or (before is not None and self._counted != before)

    def _drain(self, engine: Engine) -> None:
        """Remove the replica from the router, let its requests finish, and end the engine.

        A second SIGTERM skips the wait, unless it comes so soon that it repeats the first.
        """
        served = self._state in ("ready", "unhealthy")
        self._enter("draining")
        deadline = time.monotonic() + self._spec.drain_seconds
        idle = 0
        while served and engine.poll() is None and time.monotonic() < deadline and self._stops < 2:
            if self._reporter.drained or self._reporter.collector_gone:
                idle = idle + 1 if self._idle() else 0
                if idle > 1:  # the router may still be sending a last request
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
        """Send SIGTERM to the group, and SIGKILL when the grace period is over."""
        engine.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._spec.kill_grace_seconds
        while engine.poll() is None:
            if time.monotonic() >= deadline:
                log("the engine did not end in %g s: killed" % self._spec.kill_grace_seconds)
                engine.signal(signal.SIGKILL)
            self._sleep(min(1.0, max(0.05, deadline - time.monotonic())))

    def _end(self, state: str, reason: str, exit_code: int | None = None) -> int:
        """Report a final state, also to a collector that starts late, within a time limit."""
        self._enter(state, reason=reason, exit_code=exit_code, engine_pid=None)
        stops = self._stops
        wait_s = STOPPED_REPORT_S if stops else self._spec.final_report_seconds

        def give_up() -> bool:
            return self._stops > stops or (stops > 0 and self._reporter.collector_gone)

        if not self._reporter.flush(wait_s, give_up):
            log("the collector did not receive the final state")
        return FAILED if state == "failed" else 0

    def broke(self) -> int:
        """After an unexpected exception: report it and end, with the engine."""
        log("the watchdog failed:\n%s" % traceback.format_exc())
        reason = "the watchdog failed: %r" % sys.exc_info()[1]
        with contextlib.suppress(Exception):
            self._enter("restarting", reason=reason[:1000], engine_pid=None)
            self._reporter.flush(STOPPED_REPORT_S, lambda: self._reporter.collector_gone)
        return BROKEN


def ended_as(code: int | None) -> str:
    """An exit code as a sentence."""
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
    """Stop this process when its standard input ends: its parent has died."""
    while os.read(0, 512):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def end_with_thread(failed: threading.ExceptHookArgs) -> None:
    """End this process at once: without one of its threads, the engine's state is not reported."""
    text = "".join(traceback.format_exception(*failed[:3]))
    log("the watchdog failed:\n%s" % text)
    os._exit(BROKEN)


def main(arguments: list[str]) -> int:
    """Run the watchdog; return its exit code."""
    os.umask(0o077)
    allow_many_files()
    try:
        spec = load(arguments[1], "".join(arguments[2:3]))
        key = read_key(spec.key_file)
        guard = Guard()  # forks, so it must come before any thread
        fields = {
            "replica": spec.replica,
            "state": "starting",
            "watchdog_pid": os.getpid(),
            "node": socket.gethostname(),
            "incarnation": uuid.uuid4().hex,
        }
        reporter = Reporter(spec, fields)
        ledger = Ledger(
            spec.ledger_file, spec.gpus, spec.heartbeat_seconds, str(fields["incarnation"])
        )
        watchdog = Watchdog(spec, key, reporter, guard, ledger)
    except (IndexError, OSError, ValueError, TypeError) as error:
        log("cannot start: %s: %s" % (type(error).__name__, error))
        return BROKEN if isinstance(error, OSError) and error.errno in PASSING else UNUSABLE
    threading.excepthook = end_with_thread
    ledger.begin()
    if spec.power_gpus:
        counted = (ledger, spec.power_gpus, spec.heartbeat_seconds)
        threading.Thread(target=keep_counting, args=counted, daemon=True, name="power").start()
    reporter.start()
    if arguments[3:] == ["lifeline"]:
        threading.Thread(target=end_with_input, daemon=True, name="lifeline").start()
    try:
        return watchdog.run()
    except Exception:  # noqa: BLE001 - who started this must learn that the engine has not failed
        return watchdog.broke()
    finally:
        ledger.beat()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
