"""The cluster tests on other versions of Slurm, each in a Debian that brings it.

    python tests/slurm/versions.py [--folder FOLDER] [--only VERSION]... [--record] [-- PYTEST...]

Needs root, and gets Debian's packages from where apt gets them here. A release is installed once,
into a folder of its own, with a virtual environment of its Python. A run has mounts, processes and
a network of its own: nothing of it is left when it ends, and it meets no other run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[2]
FOLDER = Path("/var/tmp/domyn-swarm-slurm-versions")
_PROGRAMS = ("slurmctld", "slurmd", "slurm-client", "munge", "slurmdbd", "libmariadb3")
_PLUGINS = "slurm-wlm-basic-plugins"
_OTHERS = ("mariadb-server-core", "mariadb-client-core", "iproute2", "procps")
_OTHERS += ("python3", "python3-venv")
_TESTING = ("pytest", "pytest-asyncio", "pytest-randomly", "pytest-timeout", "pytest-xdist")
_TESTING += ("hypothesis", "jsonschema", "openai")
_PLACES = ("tests/slurm", "tests/conformance/test_compute.py", "tests/conformance/test_serving.py")
_TESTS = (*_PLACES, "-m", "cluster and not slow and not vllm", "-n", "2", "--dist", "loadgroup")
_PATH = "/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The first process must stay, to reap what outlives its parents: no `exec`.
_ENTER = """
set -e
root=$1 project=$2 folder=$3
shift 3
mount --bind "$root" "$root"
mkdir -p "$root/project" "$root/outside"
mount --bind "$project" "$root/project"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
# No name server is reached: what its absence means is "ask again", not that a name is unknown.
sed 's/^hosts:.*/hosts: files/' "$root/etc/nsswitch.conf" > "$root/tmp/nsswitch.conf"
mount --bind "$root/tmp/nsswitch.conf" "$root/etc/nsswitch.conf"
# Daemons want an address that is not of the loopback.
ip -batch - <<END
link set lo up
link add outer0 type veth peer name outer1
addr add 192.0.2.1/24 dev outer0
link set outer0 up
link set outer1 up
END
cd "$root"
pivot_root . outside
export folder
chroot . /bin/bash -c 'umount -l /outside; cd "/project/$folder"; "$@"; code=$?; exit $code' - "$@"
"""


class Release(NamedTuple):
    """A Debian, and which packages come from another one of its releases."""

    suite: str
    other: str = ""
    packages: tuple[str, ...] = ()  # of the other release


RELEASES = {
    # bullseye's own Python is 3.9
    "20.11": Release("bookworm", "bullseye", ("slurm*", "libslurm*", "libpmix*")),
    # with the library of its own release slurmdbd ends: "5027 Number of columns"
    "24.11": Release("trixie", "bookworm", ("libmariadb3",)),
    "26.05": Release("sid", "bookworm", ("libmariadb3",)),
}


def main() -> int:
    """Install what is missing, run what is asked for; 1 when a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the releases are kept")
    parser.add_argument("--only", action="append", choices=RELEASES, help="of these versions")
    parser.add_argument("--record", action="store_true", help="record what Slurm's commands print")
    parser.add_argument("pytest", nargs="*", help="its arguments, instead of the cluster tests")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("versions: this needs root: it mounts, and makes networks")
    failed = []
    for version in asked.only or RELEASES:
        root = asked.folder / version
        _install(version, root)
        began = time.monotonic()
        if asked.record:
            code = _run(root, "tests", ["python", "-m", "slurm.recording", "slurm/recorded"])
        else:
            code = _run(root, ".", ["pytest", *(asked.pytest or _TESTS)])
        print(f"versions: Slurm {version}: {code=}, {time.monotonic() - began:.0f} s", flush=True)
        failed += [version] if code else []
    return 1 if failed else 0


def _install(version: str, root: Path) -> None:
    """Have a release with Slurm and an environment; what is there already stays."""
    release, ready = RELEASES[version], root / ".installed"
    if not ready.exists():
        print(f"versions: installing {release.suite} for Slurm {version} into {root}", flush=True)
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        _debian(release, root)
        ready.touch()
    reported = _inside(root, "slurmctld", "-V", captured=True)
    if f" {version}." not in reported:
        print(f"versions: {release.suite} brings {reported.strip()}, not {version}", flush=True)
    needs = [PROJECT / "pyproject.toml", PROJECT / "constraints.txt"]
    made = root / "venv/.ready"
    if not made.exists() or made.stat().st_mtime < max(one.stat().st_mtime for one in needs):
        _environment(root)
        made.touch()


def _debian(release: Release, root: Path) -> None:
    mirror = _mirror()
    if shutil.which("debootstrap") is None:
        subprocess.run(["apt-get", "install", "-y", "-qq", "debootstrap"], check=True)
    script = Path("/usr/share/debootstrap/scripts") / release.suite
    command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", release.suite]
    subprocess.run([*command, str(root), mirror, *([] if script.exists() else ["sid"])], check=True)
    apt = root / "etc/apt"
    suites = [release.suite, *([release.other] if release.other else [])]
    (apt / "sources.list").write_text("".join(f"deb {mirror} {one} main\n" for one in suites))
    (apt / "preferences").write_text(
        f"Package: *\nPin: release n={release.other}\nPin-Priority: 50\n\n"
        f"Package: {' '.join(release.packages)}\n"
        f"Pin: release n={release.other}\nPin-Priority: 1001\n"
    )
    for settings in Path("/etc/apt/apt.conf.d").iterdir():
        shutil.copy(settings, apt / "apt.conf.d")
    certificates = Path("etc/ssl/certs/ca-certificates.crt")
    for name in (Path("etc/resolv.conf"), Path("etc/hosts"), certificates):
        if ("/" / name).exists():
            shutil.copy("/" / name, root / name)
    policy = root / "usr/sbin/policy-rc.d"  # no service starts as its package is installed
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    _inside(root, "apt-get", "update", "-qq")
    install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "--allow-downgrades")
    _inside(root, *install, *_PROGRAMS, _PLUGINS, *_OTHERS)


def _mirror() -> str:
    """From where apt gets this machine's packages."""
    lines = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(lines, capture_output=True, text=True, check=True).stdout.split()
    return next(one for one in listed if "security" not in one)


def _environment(root: Path) -> None:
    print(f"versions: {root}: its environment", flush=True)
    _inside(root, "python3", "-m", "venv", "--clear", "/venv")
    (root / "project").mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", str(PROJECT), str(root / "project")], check=True)
    try:
        pip = ("/venv/bin/python", "-m", "pip", "install", "-qq", "-c", "/project/constraints.txt")
        _inside(root, *pip, "pip")
        _inside(root, *pip, *_TESTING, "-e", "/project")
    finally:
        subprocess.run(["umount", str(root / "project")], check=True)


def _inside(root: Path, *command: str, captured: bool = False) -> str:
    done = subprocess.run(
        ["chroot", str(root), *command],
        env=_variables() | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if captured else None,
        text=True,
        check=True,
    )
    return done.stdout or ""


def _run(root: Path, folder: str, command: Sequence[str]) -> int:
    """Run a command in a release, in a folder of the project; its exit code."""
    namespaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child")
    # Who runs this in the background may have them ignored, and tests send them.
    signals = ["env", "--default-signal=INT,QUIT"]
    enter = [*signals, "unshare", *namespaces, "--propagation", "private", "sh", "-c", _ENTER, "sh"]
    words = [*enter, str(root), str(PROJECT), folder, *command]
    env = _variables() | {"CI": "1", "DOMYN_SWARM_TEST_SLURM_NETWORK": "namespaces"}
    return subprocess.run(words, env=env, stdin=subprocess.DEVNULL, check=False).returncode


def _variables() -> dict[str, str]:
    """The environment of what runs there: pip's settings are this machine's."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return {**kept, "PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8"}


if __name__ == "__main__":
    sys.exit(main())
