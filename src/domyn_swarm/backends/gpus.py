"""Assigns a node's GPUs to its replicas."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from domyn_swarm.errors import PlatformError, quantity

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_MOST = 64  # assumed GPUs of a machine that does not report their number
_ASK_TIMEOUT_S = 30.0


def visible_gpus(gpus_per_replica: int, replica: int) -> dict[str, str]:
    """The environment with a replica's own share of this node's GPUs, or of those that the
    scheduler left visible; `replica` is its index on this node.

    Raises:
        PlatformError: too few are visible.
    """
    if not gpus_per_replica:
        return {}
    first = replica * gpus_per_replica
    allowed = _allowed()
    if allowed is None:
        allowed = [str(number) for number in range(first + gpus_per_replica)]
    devices = allowed[first : first + gpus_per_replica]
    if len(devices) < gpus_per_replica:
        raise PlatformError(
            f"Replica {replica} needs {quantity(gpus_per_replica, 'GPU')}, but {_VARIABLE} leaves "
            f"{len(devices)} for it.",
            hint="Lower replicas or gpus_per_replica, or make more GPUs visible.",
        )
    return {_VARIABLE: ",".join(devices)}


class HeldGpus(NamedTuple):
    """GPUs that no other process of this user is given."""

    env: dict[str, str]
    files: tuple[int, ...]  # open files: the GPUs are held until no process has these open


@contextlib.contextmanager
def held_gpus(
    gpus_per_replica: int, replicas: Iterable[int], swarm: str
) -> Iterator[dict[int, HeldGpus]]:
    """For each of these replicas this many GPUs of this machine, of those that the caller left
    visible, that no replica of another swarm has. They are held during the body, and beyond it by
    processes that inherit the files.

    Raises:
        PlatformError: too few are free; none is held.
    """
    if not gpus_per_replica:
        yield {replica: HeldGpus({}, ()) for replica in replicas}
        return
    from domyn_swarm.watchdog import lock_folder  # here: it costs more than a Slurm task

    folder, devices = lock_folder(), _devices()
    with contextlib.ExitStack() as stack:
        with _turn(folder):  # else two swarms could each hold GPUs that the other needs
            found = {
                replica: _take(gpus_per_replica, replica, devices, folder, stack)
                for replica in replicas
            }
            for replica, gpus in found.items():
                for file in gpus.files:
                    os.truncate(file, 0)
                    os.pwrite(file, f"{swarm} replica {replica}".encode(), 0)
        yield found


@contextlib.contextmanager
def _turn(folder: str) -> Iterator[None]:
    with open(f"{folder}/gpus", "a", encoding="utf-8") as file:  # noqa: PTH123 - beside the locks
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _take(
    count: int, replica: int, devices: Sequence[str], folder: str, stack: contextlib.ExitStack
) -> HeldGpus:
    from domyn_swarm.watchdog import lock

    held: dict[str, int] = {}
    for device in devices:
        if len(held) < count and (file := lock(folder, _lock_name(device))) is not None:
            stack.callback(os.close, file)
            held[device] = file
    if len(held) < count:
        raise _too_few(count, replica, devices, held, folder)
    return HeldGpus({_VARIABLE: ",".join(held)}, tuple(held.values()))


def gpus_here() -> int | None:
    """The number of GPUs that this machine reports; None: it reports none."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        done = subprocess.run(
            ["nvidia-smi", "--list-gpus"],
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=_ASK_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return sum(line.startswith("GPU ") for line in lines) if done.returncode == 0 else None


def _allowed() -> list[str] | None:
    """The GPUs that the scheduler or the caller left visible; None: all."""
    words = os.environ.get(_VARIABLE)
    return None if words is None else [word.strip() for word in words.split(",") if word.strip()]


def _devices() -> Sequence[str]:
    allowed = _allowed()
    if allowed is not None:
        return list(dict.fromkeys(allowed))
    here = gpus_here()
    return [str(number) for number in range(_MOST if here is None else here)]


def _lock_name(device: str) -> str:
    return "gpu-" + device.replace("/", "-")


def _too_few(
    count: int, replica: int, devices: Sequence[str], held: dict[str, int], folder: str
) -> PlatformError:
    need = f"Replica {replica} needs {quantity(count, 'GPU')}, but"
    if os.environ.get(_VARIABLE) is not None and len(devices) < count:
        return PlatformError(
            f"{need} {_VARIABLE} leaves {len(devices)} for it.",
            hint="Lower replicas or gpus_per_replica, or make more GPUs visible.",
        )
    others = []
    for device in devices:
        if device not in held:
            with contextlib.suppress(OSError):
                holder = Path(folder, _lock_name(device)).read_text("utf-8")[:200]
                others.append(f"{device}: {holder or 'another swarm'}")
    return PlatformError(
        f"{need} {len(held)} of {len(devices)} are free ({'; '.join(others)}).",
        hint="Bring a swarm down that has some (`domyn-swarm swarm list`), or lower replicas or "
        "gpus_per_replica.",
    )
