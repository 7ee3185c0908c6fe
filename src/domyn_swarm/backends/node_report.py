"""Reports what a node provides. It runs there: `python node_report.py FOLDER [other]`.

One file of standard library that imports nothing of ours: whether our package can be imported there
is one of its results. `question.json` in the folder says what to check. It writes `listening.json`,
the address at which it can be called; answers each caller that has the token with its clock; and
writes `report.json`. It listens until a file `over` appears, or the question's time is up.
Where two nodes are asked for, it starts itself on the other one (`other`), and they call each
other.
"""

from __future__ import annotations

import fcntl
import hmac
import importlib.metadata
import importlib.util
import json
import locale
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

LONGEST_TOKEN = 64
_CALL_S = 5.0  # for one connection, either way
_COMMAND_S = 30.0
_IMPORT_S = 120.0
_OTHER_S = 60.0  # for the program on the other node to begin, and for what it reports
_TRIED_BYTES = 64 * 1024
_MOST_LINES = 3


def _tried(command: list[str], limit_s: float) -> tuple[str, str | None]:
    """The output of a program, and why it failed."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    if done.returncode == 0:
        return done.stdout.strip(), None
    said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    return done.stdout.strip(), said.splitlines()[-1]


def _distributions(names: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _imports(modules: list[str]) -> dict[str, Any]:
    """How long our programs take to start, and the error of one that does not."""
    began = time.monotonic()
    for module in modules:
        _, error = _tried([sys.executable, "-c", f"import {module}"], _IMPORT_S)
        if error is not None:
            return {"error": f"{module}: {error}", "seconds": time.monotonic() - began}
    return {"error": None, "seconds": (time.monotonic() - began) / max(1, len(modules))}


def _folder(folder: Path) -> dict[str, str | None]:
    """Whether files can be written, linked and locked there; `lock`: the result of trying a lock
    that another machine holds.
    """
    found: dict[str, str | None] = {"write": None, "link": None, "lock": "refused"}
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tried-") as file:
            file.write(b"0" * _TRIED_BYTES)
            file.flush()
            os.fsync(file.fileno())
            linked = Path(f"{file.name}-linked")
            try:
                linked.hardlink_to(file.name)
                linked.unlink()
            except OSError as error:
                found["link"] = error.strerror or str(error)
    except OSError as error:
        found["write"] = error.strerror or str(error)
    try:
        with (folder / "held").open("r+b") as held:
            fcntl.lockf(held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            found["lock"] = "granted"
    except (BlockingIOError, PermissionError):  # POSIX allows either
        pass
    except OSError as error:
        found["lock"] = error.strerror or str(error)
    return found


def _temporary() -> dict[str, Any]:
    path = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - what programs take
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return {"path": path, "error": error.strerror or str(error), "free_gb": 0.0}
    return {"path": path, "error": None, "free_gb": shutil.disk_usage(path).free / 1e9}


def _addresses(name: str) -> dict[str, Any]:
    """The addresses of a name on this node."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return {"name": name, "addresses": [], "error": error.strerror or str(error)}
    return {"name": name, "addresses": sorted({str(one[4][0]) for one in found}), "error": None}


def _caller(callers: list[list[Any]], token: str) -> dict[str, str | None]:
    """Whether the machine that asks can be called from here at one of its addresses."""
    errors = []
    for host, port in callers:
        try:
            with socket.create_connection((host, port), _CALL_S) as call:
                call.sendall(f"{token}\n".encode())
                return {"host": host, "error": None}
        except OSError as error:
            errors.append(f"{host}: {error.strerror or error}")
    return {"host": None, "error": "; ".join(errors) or "nobody listens"}


def _runtime(program: str | None, image: str | None) -> dict[str, str | None]:
    """The container program, and an image that is a file."""
    found: dict[str, str | None] = {"error": None, "version": None, "image": None}
    if program == "pyxis":
        text, error = _tried(["srun", "--help"], _COMMAND_S)
        known = "--container-image" in text
        found["version"] = "srun knows --container-image" if known else None
        found["error"] = None if known else error or "srun does not know --container-image"
    elif program is not None:
        where = shutil.which(program)
        asked = [program, "version"] if program == "enroot" else [program, "--version"]
        found["version"], found["error"] = (
            _tried(asked, _COMMAND_S) if where else ("", f"{program} is not on PATH")
        )
    if image is not None and image.startswith("/"):
        try:
            with Path(image).open("rb") if Path(image).is_file() else os.scandir(image):
                pass
        except OSError as error:
            found["image"] = error.strerror or str(error)
    return found


def _gpus() -> dict[str, Any]:
    fields = "name,driver_version,memory.total"
    text, error = _tried(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], 60.0)
    return {"gpus": text.splitlines() if error is None else [], "error": error}


def _free_gb(path: str) -> float | None:
    try:
        return shutil.disk_usage(path).free / 1e9
    except OSError:
        return None


def report(folder: Path, question: dict[str, Any]) -> dict[str, Any]:
    """All results for this node. Values of variables that may hold secrets are left out."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    proxies = [one for one in os.environ if one.lower().endswith("_proxy")]
    module = question["engine_module"]
    return {
        "node": name,
        "python": ".".join(map(str, sys.version_info[:3])),
        "executable": sys.executable,
        "packages": _distributions(question["packages"]),
        "imports": _imports(question["imports"]),
        "engine": module is None or importlib.util.find_spec(module) is not None,
        "folder": _folder(folder),
        "own_name": _addresses(name),
        "caller": _caller(question["callers"], question["token"]),
        "temporary": _temporary(),
        "shared_memory_gb": _free_gb("/dev/shm"),  # noqa: S108 - where engines share memory
        "encoding": locale.getpreferredencoding(False),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "runtime": _runtime(question["runtime"], question["image"]),
        "gpus": _gpus() if question["gpus"] else None,
        "proxies": sorted(proxies),
        "variables": [one for one in ("PYTHONPATH", "PYTHONHOME") if os.environ.get(one)],
    }


def _asked_peer(peer: dict[str, Any], token: str) -> dict[str, Any]:
    """Whether the program of another node is reached from here, and its name is known."""
    found = {"address": peer["address"], "name": _addresses(peer["node"]), "error": None}
    try:
        with socket.create_connection((peer["address"], peer["port"]), _CALL_S) as call:
            call.sendall(f"{token}\n".encode())
            if not call.makefile("rb").readline(LONGEST_TOKEN):
                found["error"] = "something else answers at the port of our program"
    except OSError as error:
        found["error"] = error.strerror or str(error)
    return found


def _read(path: Path) -> dict[str, Any] | None:
    list(path.parent.iterdir())  # network file systems look at a folder anew as it is opened
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


class _OtherNode:
    """The program on a second node, started from this one as a replica's nodes are."""

    def __init__(self, folder: Path, question: dict[str, Any], node: str) -> None:
        self._folder = folder
        self._token = question["token"]
        start = [word.replace("{node}", node) for word in question["other_node"]]
        start += [sys.executable, __file__, str(folder), "other"]
        with (folder / "other.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", 'exec "$@"', "sh", *start],  # it says what is not there
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def report(self) -> dict[str, Any]:
        """What the two nodes are to each other; `error`: it did not run there."""
        there = self._awaited("other-listening.json")
        back = self._awaited("other-report.json") if there else None
        if there is None or back is None:
            return {"error": self._why_not(), "node": None, "there": None, "back": None}
        found = _asked_peer(there, self._token)
        return {"error": None, "node": there["node"], "there": found, "back": back}

    def _awaited(self, name: str) -> dict[str, Any] | None:
        ends_at = time.monotonic() + _OTHER_S
        while (found := _read(self._folder / name)) is None:
            if self._process.poll() is not None or time.monotonic() > ends_at:
                return _read(self._folder / name)
            time.sleep(0.2)
        return found

    def _why_not(self) -> str:
        said = (self._folder / "other.log").read_text(encoding="utf-8", errors="replace")
        code = self._process.poll()
        how = f"it says nothing for {_OTHER_S:g} s" if code is None else f"exit code {code}"
        return " / ".join(said.strip().splitlines()[-_MOST_LINES:]) or how


def _write(path: Path, document: dict[str, Any]) -> None:
    written = path.with_name(f".{path.name}")
    written.write_text(json.dumps(document), encoding="utf-8")
    written.replace(path)


def listen() -> socket.socket:
    """Listen on a port on every address of this machine."""
    try:
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):  # no IPv6 here
        return socket.create_server(("", 0))


def _answer(server: socket.socket, token: str) -> None:
    """Answer callers that have the token with the time, one after the other, until this program
    ends.
    """
    while True:
        try:
            call, _ = server.accept()
        except OSError:
            return
        try:
            with call:
                call.settimeout(_CALL_S)
                said = call.makefile("rb").readline(LONGEST_TOKEN + 1).strip()
                if hmac.compare_digest(said, token.encode()):
                    call.sendall(f"{time.time()!r}\n".encode())
        except OSError:
            continue


def _where(server: socket.socket, question: dict[str, Any]) -> dict[str, Any]:
    """Where this program can be called: by other nodes, at the address that our own programs have
    there.
    """
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    found = {"node": name, "port": server.getsockname()[1], "address": name}
    if question["address_program"] is not None:
        said, _ = _tried([sys.executable, "-c", question["address_program"]], _IMPORT_S)
        found["address"] = said.splitlines()[-1] if said else name
    return found


def _first(folder: Path, question: dict[str, Any], server: socket.socket) -> None:
    where = _where(server, question)
    _write(folder / "listening.json", where)
    other = question["other_node"] and _OtherNode(folder, question, where["node"])
    reported = report(folder, question)
    reported["other"] = other.report() if other else None
    _write(folder / "report.json", reported)


def _other(folder: Path, question: dict[str, Any], server: socket.socket) -> None:
    _write(folder / "other-listening.json", _where(server, question))
    first = json.loads((folder / "listening.json").read_text(encoding="utf-8"))
    _write(folder / "other-report.json", _asked_peer(first, question["token"]))


def main() -> None:
    """Report, and stay reachable until the asking program has read the report."""
    os.umask(0o077)
    folder = Path(sys.argv[1])
    question = json.loads((folder / "question.json").read_text(encoding="utf-8"))
    with listen() as server:
        threading.Thread(target=_answer, args=(server, question["token"]), daemon=True).start()
        (_other if "other" in sys.argv[2:] else _first)(folder, question, server)
        ends_at = time.monotonic() + question["listens_s"]
        while time.monotonic() < ends_at and not (folder / "over").exists():
            time.sleep(0.2)


if __name__ == "__main__":
    main()
