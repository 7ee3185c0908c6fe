"""`.env` is read from the home alone, and the environment wins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from domyn_swarm.config import load_dotenv


def test_a_file_in_the_home_fills_in_what_is_not_set(
    swarm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm_home.mkdir()
    (swarm_home / ".env").write_text('# mine\nONE=from file\nTWO="a $HOME"\nexport THREE=3\n')
    (tmp_path / ".env").write_text("FOUR=never\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONE", "set before")
    for name in ("TWO", "THREE", "FOUR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    load_dotenv()
    assert os.environ["ONE"] == "set before"
    assert os.environ["TWO"] == "a $HOME"
    assert os.environ["THREE"] == "3"
    assert "FOUR" not in os.environ
