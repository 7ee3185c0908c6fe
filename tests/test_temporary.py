"""Folders for temporary files that a node does not have, or has no room in."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from domyn_swarm.temporary import settle_temporary_folder, too_long_for_sockets
from patience import limit_s

FULL = """
set -e
for place in /tmp /var/tmp /usr/tmp; do
    [ ! -d $place ] || mount -t tmpfs -o ro none $place
done
cd /proc
exec "$0" -c 'from domyn_swarm import temporary; temporary.settle_temporary_folder()'
"""


def test_a_folder_that_is_not_there_or_takes_no_file_is_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for unusable in (tmp_path / "gone", tmp_path / "file", Path("/proc")):
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", str(unusable))
        said = settle_temporary_folder()
        assert said is not None
        assert f"TMPDIR={unusable} cannot be written to" in said
        assert "TMPDIR" not in os.environ
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert settle_temporary_folder() is None
    assert os.environ["TMPDIR"] == str(tmp_path)


def test_a_folder_whose_sockets_do_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for length, told in ((40, False), (41, True)):
        monkeypatch.setenv("TMPDIR", "/" + "x" * (length - 1))
        assert (too_long_for_sockets() is not None) is told
    monkeypatch.delenv("TMPDIR")
    assert too_long_for_sockets() is None


def test_no_room_anywhere_ends_with_that_as_the_cause() -> None:
    if os.geteuid() != 0:
        pytest.skip("NO TEST OF A FULL /tmp: only root can have one of its own")
    if Path(sys.executable).is_relative_to("/tmp"):
        pytest.skip("NO TEST OF A FULL /tmp: this Python lies in it")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", FULL, sys.executable],
        env={name: value for name, value in os.environ.items() if name != "TMPDIR"},
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("domyn-swarm: "), done.stderr
    assert "no space for temporary files: /tmp is full" in done.stderr
