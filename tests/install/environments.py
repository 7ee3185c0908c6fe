"""Virtual environments with nothing in them but what a test installs."""

from __future__ import annotations

import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from install.packages import pins, run

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python")
_UV = (Path(sys.executable).with_name("uv"), "pip")


@dataclass(frozen=True)
class Environment:
    """One of them; pip or uv of the tests' own environment install into it."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Environment:
        """Make an empty one."""
        venv.create(folder, symlinks=True)
        return cls(folder)

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin/python"

    @property
    def program(self) -> str:
        """The installed command."""
        return str(self.folder / "bin/domyn-swarm")

    def install_with_pip(self, *requirements: str, constraints: Path) -> None:
        """Install as the documentation says."""
        run(*_PIP, self.python, "install", "--quiet", "-c", constraints, *requirements)

    def install_with_uv(self, *requirements: str, constraints: Path | None = None) -> None:
        """Install what pip would, with a tenth of its work: files are linked from uv's cache."""
        held = ("-c", constraints) if constraints else ()
        run(*_UV, "install", "--quiet", "--python", self.python, *held, *requirements)

    def versions(self) -> dict[str, str]:
        """What is installed in it; packages that do not go together are an error."""
        run(*_UV, "check", "--quiet", "--python", self.python)
        return pins(run(*_UV, "list", "--format", "freeze", "--python", self.python))

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Run its interpreter, which must end with 0; its stdout."""
        return run(self.python, *arguments, cwd=cwd)

    def megabytes(self) -> float:
        """How much of the disk it takes."""
        return sum(one.lstat().st_size for one in self.folder.rglob("*")) / 1e6
