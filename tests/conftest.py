"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = [
    "typed_records",  # before anything makes a record
    "lanes",
    "patience",
    "model_server",
    "ray_fixtures",
    "lepton.fixtures",
    "slurm.fixtures",
]

# A shared machine may be slow at any moment: time is no reason to fail an example.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def swarm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh `$DOMYN_SWARM_HOME` that does not exist yet; no setting of the caller's leaks in."""
    home = tmp_path / "swarm-home"
    for name in ("LOG_LEVEL", "LOG_FORMAT", "DEFAULTS", "API_TOKEN", "MAIL_USER"):
        monkeypatch.delenv(f"DOMYN_SWARM_{name}", raising=False)
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A program run within a test takes our loggers for itself: the next one may listen to them."""
    logger = logging.getLogger("domyn_swarm")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_open() -> Iterator[None]:
    """What a module left open is an error of that module, not of the test that runs when Python
    happens to collect garbage.
    """
    yield
    gc.collect()
