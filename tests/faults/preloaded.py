"""The library that makes a disk fail for the programs that it is preloaded into."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


def build(scratch: Path) -> Path:
    """Compile it."""
    library = scratch / "faults.so"
    source = Path(__file__).with_name("faults.c")
    compiler = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*compiler, "-o", str(library), str(source), "-ldl"], check=True)
    return library


class FullDisk:
    """A folder on a disk that is full now and then, for programs with this environment."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._flag = scratch / "disk-is-full"
        self.env: Mapping[str, str] = {
            "LD_PRELOAD": str(build(scratch)),
            "FULL_DISK": str(folder),
            "FULL_WHILE": str(self._flag),
        }

    def fill(self) -> None:
        """Nothing fits from now on."""
        self._flag.touch()

    def make_room(self) -> None:
        """Everything fits again."""
        self._flag.unlink()
