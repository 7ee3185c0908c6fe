"""What is published: the sdist, and the wheel that is built from it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = tuple(
    tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
)


@dataclass(frozen=True)
class Packages:
    """The two files."""

    sdist: Path
    wheel: Path

    def requirement(self, *extras: str) -> str:
        """The wheel with extras, as one writes it for pip."""
        wanted = f"[{','.join(extras)}]" if extras else ""
        return f"domyn-swarm{wanted} @ {self.wheel.as_uri()}"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run to the end, which must be 0; its stdout. The limit of the test is that of the command."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        [*map(str, command)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # pip works in a process of its own process
            raise
    assert process.returncode == 0, f"{command}\n{stdout}{stderr}"
    return stdout


def build(checkout: Path, folder: Path) -> Packages:
    """Build the sdist from a checkout, and the wheel from nothing but the sdist."""
    hatch = (sys.executable, "-m", "hatchling", "build")
    run(*hatch, "-t", "sdist", "-d", folder, cwd=checkout)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    run(*hatch, "-t", "wheel", "-d", folder, cwd=source)
    shutil.rmtree(folder / "source")
    (wheel,) = folder.glob("*.whl")
    return Packages(sdist, wheel)


def pins(listing: str) -> dict[str, str]:
    """The versions in a listing of `name==version`, by normalised names."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", listing, re.MULTILINE)
    return {normalised(name): version for name, version in found}


def normalised(name: str) -> str:
    """One spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constrained() -> dict[str, str]:
    """What `constraints.txt` holds."""
    return pins(CONSTRAINTS.read_text(encoding="utf-8"))
