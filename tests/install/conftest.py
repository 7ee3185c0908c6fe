"""The packages, built once, and what asks the package index."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from install.packages import ROOT, Packages, build
from install.resolution import resolved


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Both, as built from this checkout."""
    return build(ROOT, tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip what asks the package index if it does not answer, loudly; in CI that is a failure."""
    try:
        resolved(tmp_path_factory.mktemp("index"), "msgspec")
    except AssertionError as unreachable:
        why = f"the package index does not answer: {unreachable}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(f"NOTHING RESOLVED OR INSTALLED: {why}")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is not the checkout."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return folder
