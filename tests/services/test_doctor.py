"""The doctor of a machine: each problem is named, with what to do about it."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import CommandLine
from domyn_swarm import open_files
from domyn_swarm.backends.checks import Check
from domyn_swarm.backends.endpoint.view import EndpointAddress
from domyn_swarm.open_files import Limits
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.services.doctor import check_locks, examine
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from local_swarms import launch_of


def wrong(config: Path | None = None) -> dict[str, Check]:
    return {check.name: check for check in examine(config).checks if check.status != "ok"}


def written(folder: Path, *lines: str) -> Path:
    path = folder / "swarm.yaml"
    path.write_text("\n".join(["name: s", "backend: local", *lines]) + "\n")
    return path


def test_a_healthy_machine(tmp_path: Path) -> None:
    found = examine(written(tmp_path, "model: m", "engine: sim"))
    assert found.well
    assert all((check.status == "ok") == (check.fix is None) for check in found.checks)


def test_a_rehearsal_on_this_machine(tmp_path: Path, swarm_home: Path) -> None:
    cli, path = CommandLine(swarm_home), written(tmp_path, "model: m", "engine: sim")
    found = cli.json("doctor", "-c", path, "--rehearse")["checks"]
    there = {one["name"]: one for one in found if one["name"].startswith("node")}
    assert there["node"]["detail"] == "ran on this machine"
    assert {one["status"] for one in there.values()} <= {"ok", "warning"}
    assert "node: name" not in there  # nobody else calls it
    assert list((swarm_home / "rehearsals").iterdir()) == []
    refused = cli("doctor", "--rehearse")
    assert (refused.returncode, "needs a configuration" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("hard", "warned"),
    [(65_536, set()), (20_000, set()), (4096, {"open files", "endpoint"})],
)
def test_too_few_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard: int, warned: set[str]
) -> None:
    monkeypatch.setattr(open_files, "limits", lambda: open_files.Limits(1024, hard))
    path = written(tmp_path, "model: m", "engine: sim")
    found = [one for one in examine(path).checks if one.name in ("open files", "endpoint")]
    assert f"here: 1024 (soft), {hard} (hard)" in found[0].detail
    assert {one.name for one in found if one.status == "warning"} == warned
    if "endpoint" in warned:
        assert "takes 1343 requests at once" in found[-1].detail


def test_the_limits_of_other_nodes_are_those_that_endpoints_say(swarm_home: Path) -> None:
    store = SwarmStore.open()
    SwarmLifecycle(store)._record(launch_of("far"))
    paths = SwarmPaths.of(swarm_home, "far")
    address = EndpointAddress(url="http://n7:1", node="n7", open_files=Limits(512, 512))
    write_private(paths.endpoint, address.model_dump_json())
    assert "on n7, of far: 512 (soft), 512 (hard)" in wrong()["open files"].detail


def test_a_model_that_is_not_there_and_how_to_get_it(tmp_path: Path) -> None:
    found = wrong(written(tmp_path, "model: /nowhere/model.gguf", "engine: llamacpp"))
    assert "/nowhere/model.gguf" in found["configuration"].detail
    assert "smollm2-135m-instruct" in str(found["configuration"].fix)


def test_every_mistake_is_a_finding_beside_the_machine_s(cli: CommandLine, tmp_path: Path) -> None:
    path = written(tmp_path, "replcas: 2", "port: high")
    done = cli("doctor", "-c", path, "--json")
    assert done.returncode == 4
    checks = json.loads(done.stdout)["checks"]
    told = [one["detail"] for one in checks if one["name"] == "configuration"]
    assert [text.split(": ")[1] for text in told] == ["model", "replcas", "port"]
    assert f"{path}:3" in told[1]
    assert {"home", "database", "router", "defaults"} <= {one["name"] for one in checks}


@pytest.fixture
def cli(swarm_home: Path) -> CommandLine:
    return CommandLine(swarm_home)


def test_defaults_that_are_wrong_or_missing(
    swarm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm_home.mkdir(mode=0o700)
    (swarm_home / "defaults.yaml").write_text("backend: {type: slurm, acount: me}\n")
    found = wrong()["defaults"]
    assert f"{swarm_home / 'defaults.yaml'}:1: backend.acount: unknown key" in found.detail
    (swarm_home / "defaults.yaml").write_text("backend: {type: slurm, account: me}\n")
    assert wrong() == {}
    monkeypatch.setenv("DOMYN_SWARM_DEFAULTS", str(tmp_path / "gone.yaml"))
    assert "DOMYN_SWARM_DEFAULTS" in str(wrong()["defaults"].fix)


def test_what_others_may_read(swarm_home: Path) -> None:
    swarm_home.mkdir(mode=0o700)
    (swarm_home / ".env").write_text("HF_TOKEN=x\n")
    (swarm_home / ".env").chmod(0o644)
    found = wrong()["privacy"]
    assert found.status == "warning"
    assert found.fix == f"chmod 600 {swarm_home / '.env'}"
    (swarm_home / ".env").chmod(0o600)
    swarm_home.chmod(0o755)
    assert wrong()["privacy"].fix == f"chmod 700 {swarm_home}"


def test_a_home_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(tmp_path / "file"))
    found = wrong()
    assert "is no folder" in found["home"].detail
    assert found["database"].status == "failed"
    monkeypatch.setenv("DOMYN_SWARM_HOME", "/proc/domyn-swarm")  # not even root may write there
    found = wrong()
    assert "cannot be written to" in found["home"].detail
    assert "DOMYN_SWARM_HOME" in str(found["home"].fix)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB without room for more."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs more rights than this user has")
    try:
        filler = folder / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(b"0" * (8 << 20))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_swarm_on_another_file_system_than_the_answers(full_disk: Path, tmp_path: Path) -> None:
    (full_disk / "filler").unlink()
    path = written(tmp_path, "model: m", "engine: sim", f"home_directory: {full_disk / 'swarms'}")
    found = wrong(path)["checkpoints"]
    assert found.status == "warning"
    assert str(tmp_path / "swarm-home" / "checkpoints") in found.detail
    assert "--checkpoint-dir" in str(found.fix)


def test_locks_of_the_state_database(tmp_path: Path) -> None:
    found = check_locks(tmp_path / "not-yet" / "home")
    assert (found.status, found.fix) == ("ok", None)

    def refused(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")  # Lustre without flock

    found = check_locks(tmp_path, lock=refused)
    assert "there are no file locks (Function not implemented)" in found.detail
    assert "DOMYN_SWARM_HOME" in str(found.fix)
    found = check_locks(tmp_path, lock=lambda *_: None)  # granted, and not held
    assert "one lock to two processes" in found.detail
    assert found.status == "failed"


@pytest.mark.parametrize(
    ("options", "told"),
    [("rw,flock", None), ("rw,localflock", "localflock"), ("rw,local_lock=all", "local_lock=all")],
)
def test_locks_that_hold_on_one_machine_alone(
    tmp_path: Path, options: str, told: str | None
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw,relatime - ext4 /dev/root rw,nolock\n"
        f"2 1 0:9 / {tmp_path} rw,nosuid shared:1 - lustre mds:/fs {options}\n"
        "3 1 0:8 / /elsewhere rw - nfs server:/x rw,nolock\n"
    )
    found = check_locks(tmp_path / "home", mounts)
    assert (found.status == "ok") == (told is None)
    assert told is None or f"mounted with {told}" in found.detail


def test_a_full_disk(full_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = full_disk / "swarms"
    path = written(tmp_path, "model: m", "engine: sim", f"home_directory: {folder}")
    found = wrong(path)["home_directory"]
    assert found.status == "failed"
    assert "No space left" in found.detail
    assert "Make room" in str(found.fix)
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(folder))
    found = wrong()
    assert "No space left" in found["home"].detail
    assert found["database"].status == "failed"
    assert found["database"].fix


def test_ports_that_are_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = written(tmp_path, "model: m", "engine: sim", f"port: {port}")
        detail = next(one.detail for one in examine(path).checks if one.name == "ports")
        assert detail.endswith("is free")
        assert not detail.startswith(f"{port} ")
