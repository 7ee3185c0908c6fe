"""Nodes with addresses of their own: Linux' namespaces, and a bridge of this machine.

A node has an address, a host name and an `/etc/hosts` of its own over the file system of all. So
the same port can be used on several nodes, a server that listens on 127.0.0.1 alone is not reached
from others, and links can be cut.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from process_list import running
from slurm.network import PATH

_ENV = {**os.environ, "PATH": PATH}
_TOOLS = ("ip", "unshare", "nsenter", "mount", "hostname")

_BRIDGE = "dswarm"
_SUBNETS = 512  # of 198.18.0.0/15, which is reserved for tests of networks
_MOST_NODES = 240
_ENDED_S = 5.0
_REACHED_S = 2.0
_NOBODYS_PORT = 9

# Namespaces are as long as a process is in them: it also holds a node whose slurmd is killed.
_HOLDER = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
ip -batch - <<END
link set lo up
link add eth0 type veth peer name $3 netns $4
addr add $5/24 dev eth0
link set eth0 up
END
echo up
exec sleep infinity
"""
_REACH = """
import socket, sys
most_s, port, refused, *addresses = sys.argv[1:]
for address in addresses:
    with socket.socket() as probe:
        probe.settimeout(float(most_s))
        if (code := probe.connect_ex((address, int(port)))) not in (0, int(refused)):
            sys.exit(f"does not reach {address}: error {code}")
"""


class Namespaces:
    """See `Network`. Needs root. Any process that knows the folder finds the network of a cluster.

    The bridge's name is the claim on a subnet, its address says whose it is: both are given as it
    is made, so that clusters never share one, and that it is found wherever a start was cut short.

    Raises:
        RuntimeError: from every method that changes something, in the words of what failed.
    """

    def __init__(self, folder: Path, nodes: Sequence[str]) -> None:
        if len(nodes) > _MOST_NODES:
            raise ValueError(f"at most {_MOST_NODES} nodes")
        self._folder = folder
        self._nodes = list(nodes)
        self._holders: dict[str, subprocess.Popen[str]] = {}
        self._found = ""

    @staticmethod
    def refusal() -> str | None:
        """Why there can be no such network here; None when there can: it has made one to know."""
        if os.geteuid() != 0:
            return "this is not root"
        if missing := [name for name in _TOOLS if shutil.which(name, path=PATH) is None]:
            return f"{', '.join(missing)} is not installed"
        with tempfile.TemporaryDirectory(prefix="slurm-network-") as folder:
            network = Namespaces(Path(folder), ["n1", "n2"])
            try:
                network.open()
                network.add("n1")
                network.add("n2")
                network.check()
            except RuntimeError as error:
                return str(error)
            finally:
                network.close()
        return None

    @staticmethod
    def was_opened(folder: Path) -> bool:
        """Whether the cluster in a folder was given such a network."""
        return (folder / "etc/hosts").exists()

    @property
    def controller(self) -> str:
        """See `Network`."""
        return f"{self._subnet}.1"

    def places(self, port: int) -> str:
        """See `Network`. The port is the same on every node."""
        return f"NodeAddr={self._subnet}.[11-{10 + len(self._nodes)}] Port={port}"

    def open(self) -> None:
        """See `Network`."""
        self._claim()
        for name in ("etc", "log"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "etc/hosts").write_text(self._hosts())
        _ip(f"addr add {self.controller}/24 dev {self._bridge}", f"link set {self._bridge} up")

    def close(self) -> None:
        """See `Network`. Nothing to do where there is nothing."""
        _kill_all({_namespace(process.pid) for process in self._processes()})
        for node in list(self._holders):
            self._reap(node)
        if bridge := self._look():
            deadline = time.monotonic() + _ENDED_S
            while links := _family(bridge):
                _ip(*(f"link del {link}" for link in links), force=True)
                if time.monotonic() >= deadline:
                    raise RuntimeError(f"cannot be removed: {', '.join(links)}")
        self._found = ""

    def add(self, node: str) -> None:
        """See `Network`."""
        if node in self._holders:
            return
        log = self._folder / "log" / f"{node}.network"
        self._holders[node] = holder = self._hold(node, log)
        assert holder.stdout is not None
        with holder.stdout as told:
            if told.readline() != "up\n":
                raise RuntimeError(f"no namespaces for {node}: {log.read_text().strip()}")
        _ip(f"link set {self._link(node)} master {self._bridge} up")

    def lose(self, node: str) -> None:
        """See `Network`."""
        if node in self._holders:
            _ip(f"link del {self._link(node)}", force=True)
            _kill_all({_namespace(self._holders[node].pid)})
            self._reap(node)

    def inside(self, node: str, cwd: Path) -> list[str]:
        """See `Network`."""
        enter = ["nsenter", f"--target={self._holders[node].pid}", "--net", "--uts", "--mount"]
        return [*enter, "sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(cwd)]

    def cut(self, node: str) -> None:
        """See `Network`."""
        _ip(f"link set {self._link(node)} down")

    def mend(self, node: str) -> None:
        """See `Network`."""
        _ip(f"link set {self._link(node)} up")

    def check(self) -> None:
        """That this machine and the nodes reach each other, which a firewall may forbid.

        Raises:
            RuntimeError: who does not reach whom.
        """
        known = [str(_REACHED_S), str(_NOBODYS_PORT), str(errno.ECONNREFUSED)]
        everyone = [self.controller, *(self._address(node) for node in self._nodes)]
        command = [sys.executable, "-I", "-S", "-c", _REACH, *known, *everyone]
        first = self._nodes[0]
        for who, start in (("this machine", []), (first, self.inside(first, self._folder))):
            done = subprocess.run([*start, *command], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{who} {done.stderr.strip()}")

    # -- inside --------------------------------------------------------------------------------

    def _hold(self, node: str, log: Path) -> subprocess.Popen[str]:
        """A process in new namespaces; it says so when they are complete."""
        spool = self._folder / "spool" / node  # by which all that is on the node is known
        spool.mkdir(parents=True, exist_ok=True)
        unshare = ["unshare", "--net", "--uts", "--mount", "--propagation=slave"]
        words = [node, f"{self._folder}/etc/hosts", self._link(node), str(os.getpid())]
        with log.open("wb") as output:
            return subprocess.Popen(
                [*unshare, "sh", "-c", _HOLDER, "sh", *words, self._address(node)],
                env=_ENV,
                cwd=spool,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,
            )

    def _reap(self, node: str) -> None:
        holder = self._holders.pop(node)
        holder.kill()
        holder.wait(_ENDED_S)

    def _processes(self) -> Iterator[psutil.Process]:
        """At least one of every node: what was started for it is in its folder."""
        for process in running():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if Path(process.cwd()).is_relative_to(self._folder / "spool"):
                    yield process

    def _claim(self) -> None:
        """Make a bridge: the first whose name is free, from one on that the folder decides."""
        if self._look():
            raise RuntimeError(f"the cluster in {self._folder} has a network: stop it first")
        first, taken = int(self._mac.replace(":", ""), 16), _links(_BRIDGE)
        for number in range(first, first + _SUBNETS):
            name = f"{_BRIDGE}{number % _SUBNETS}"
            if name not in taken:
                try:
                    return _ip(f"link add name {name} address {self._mac} type bridge")
                except RuntimeError as error:
                    if "File exists" not in str(error):  # another cluster was faster
                        raise
        raise RuntimeError(f"all of {_SUBNETS} subnets are in use")

    @property
    def _mac(self) -> str:
        """A bridge's address that no network card has and no other folder's bridge."""
        return "02:" + hashlib.sha256(str(self._folder).encode()).digest()[:5].hex(":")

    def _look(self) -> str:
        """The name of this cluster's bridge; empty when there is none."""
        if not self._found:
            links = _links(_BRIDGE).items()
            self._found = next((name for name, mac in links if mac == self._mac), "")
        return self._found

    @property
    def _bridge(self) -> str:
        if name := self._look():
            return name
        raise RuntimeError(f"the cluster in {self._folder} has no network now")

    @property
    def _subnet(self) -> str:
        number = int(self._bridge.removeprefix(_BRIDGE))
        return f"198.{18 + number // 256}.{number % 256}"

    def _link(self, node: str) -> str:
        """The end of the node's link that is plugged into the bridge."""
        return f"{self._bridge}n{self._place(node)}"

    def _address(self, node: str) -> str:
        return f"{self._subnet}.{10 + self._place(node)}"

    def _place(self, node: str) -> int:
        return 1 + self._nodes.index(node)

    def _hosts(self) -> str:
        """`/etc/hosts` of the nodes: this machine's, with the names of this network."""
        host = socket.gethostname()
        addresses = {node: self._address(node) for node in self._nodes}
        for name in (host.split(".")[0], host):
            addresses[name] = self.controller
        kept = ["127.0.0.1 localhost"]
        for line in Path("/etc/hosts").read_text().splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            if others := [name for name in names if name not in {*addresses, "localhost"}]:
                kept.append(" ".join([address, *others]))
        kept += [f"{address} {name}" for name, address in addresses.items()]
        return "\n".join(kept) + "\n"


def _ip(*commands: str, force: bool = False) -> None:
    """Run commands of `ip`; with `force` all of them, whatever becomes of each."""
    words = ["ip", *(["-force"] if force else []), "-batch", "-"]
    told = "\n".join(commands)
    done = subprocess.run(words, input=told, env=_ENV, capture_output=True, text=True, check=False)
    if done.returncode and not force:
        raise RuntimeError(f"ip {'; '.join(commands)}: {done.stderr.strip()}")


def _links(prefix: str) -> dict[str, str]:
    """This machine's links of such names, with their addresses; none where `ip` is not there."""
    if shutil.which("ip", path=PATH) is None:
        return {}
    command = ["ip", "-json", "link", "show"]
    done = subprocess.run(command, env=_ENV, capture_output=True, text=True, check=True)
    found = {link["ifname"]: link.get("address", "") for link in json.loads(done.stdout)}
    return {name: mac for name, mac in found.items() if name.startswith(prefix)}


def _family(bridge: str) -> list[str]:
    """A bridge and the links of its nodes; itself last, since by it the others are found."""
    found = _links(bridge)
    return [*(name for name in found if name.startswith(f"{bridge}n")), *({bridge} & found.keys())]


def _namespace(pid: int) -> str:
    """A process' network namespace; empty when the process has ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _kill_all(namespaces: set[str]) -> None:
    """Kill whatever is in the namespaces, whoever started it; never what is in this process' own.

    Raises:
        RuntimeError: something does not end.
    """
    doomed = namespaces - {"", _namespace(os.getpid())}
    deadline = time.monotonic() + _ENDED_S
    while doomed and (pids := [pid for pid in psutil.pids() if _namespace(pid) in doomed]):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        if time.monotonic() >= deadline:
            raise RuntimeError(f"processes do not end: {pids}")
        time.sleep(0.01)
