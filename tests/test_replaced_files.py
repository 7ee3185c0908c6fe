"""Files that others replace by renaming, as a network file system has them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from domyn_swarm.replaced_files import read_replaced


def stale(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The server has replaced the file that was opened, so often."""
    read_text, left = Path.read_text, [times]

    def read(path: Path, encoding: str) -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read_text(path, encoding)

    monkeypatch.setattr(Path, "read_text", read)


def test_what_was_replaced_as_it_was_read_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("é", "utf-8")
    for times in (0, 1, 2):
        stale(monkeypatch, times)
        assert read_replaced(tmp_path / "file") == "é"
    stale(monkeypatch, 3)
    with pytest.raises(OSError, match="Stale"):
        read_replaced(tmp_path / "file")


def test_only_what_does_not_exist_is_none(tmp_path: Path) -> None:
    assert read_replaced(tmp_path / "file") is None
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        read_replaced(tmp_path / "folder")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_replaced(tmp_path / "bytes")
