"""What the sdist and the wheel hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from install.packages import ROOT, Packages, build

STRAY = (
    *(".env", "notes.txt", ".venv/lib/a.py", ".hypothesis/a", "dist/old.whl"),
    *("src/domyn_swarm/__pycache__/a.pyc", "tests/__pycache__/a.pyc"),
)


def tracked() -> list[str]:
    """The files of the checkout that git knows or would add."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def in_wheel(packages: Packages) -> list[str]:
    """The names of its files."""
    with zipfile.ZipFile(packages.wheel) as archive:
        return archive.namelist()


def test_the_wheel_is_the_package_with_its_files_of_data_and_nothing_else(
    packages: Packages,
) -> None:
    source = {name.removeprefix("src/") for name in tracked() if name.startswith("src/")}
    assert {name for name in in_wheel(packages) if ".dist-info/" not in name} == source
    assert {
        "domyn_swarm/py.typed",
        "domyn_swarm/services/templates/report.html.j2",
        "domyn_swarm/backends/slurm/templates/batch.sh.j2",
        "domyn_swarm/state/migrations/script.py.mako",
        "domyn_swarm/cli/shells/domyn-swarm.bash",
    } <= source


def test_the_wheel_holds_the_licence_and_every_migration(packages: Packages) -> None:
    names = in_wheel(packages)
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    migrations = {path.name for path in ROOT.glob("src/domyn_swarm/state/migrations/versions/*.py")}
    assert migrations
    assert migrations <= {Path(name).name for name in names if "/migrations/versions/" in name}


def test_the_sdist_holds_what_is_tracked_and_no_stray_file_of_the_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    files = tracked()
    for name in files:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, checkout / name)
    for name in STRAY:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("private", encoding="utf-8")
    (tmp_path / "built").mkdir()
    with tarfile.open(build(checkout, tmp_path / "built").sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held <= {*files, "PKG-INFO"}
    left_out = {name for name in files if name not in held}
    assert {name for name in left_out if not name.startswith(".")} == set()


def test_the_container_file_copies_all_that_an_installation_takes(tmp_path: Path) -> None:
    file = (ROOT / "deploy/container/Containerfile").read_text(encoding="utf-8")
    copied = [line.split()[1:-1] for line in file.splitlines() if re.match(r"COPY (?!--)", line)]
    names = [name for line in copied for name in line]
    assert names
    source, made = tmp_path / "copied", tmp_path / "made"
    source.mkdir()
    made.mkdir()
    for name in names:
        place = ROOT / name
        copy = shutil.copytree if place.is_dir() else shutil.copyfile
        copy(place, source / name)
    assert build(source, made).wheel.is_file()
