"""Fixtures that every test may use."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["model_server", "ray_fixtures", "lepton.fixtures", "slurm.fixtures"]

# A shared machine may be slow at any moment: time is no reason to fail an example.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.hookimpl(trylast=True)  # after the order was shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray's cluster takes a tenth of two cores even when idle: what needs it comes last."""
    items.sort(key=_needs_ray)


def _needs_ray(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    return "ray_cluster" in fixtures or item.get_closest_marker("ray") is not None


@pytest.fixture(autouse=True)
def swarm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh `$DOMYN_SWARM_HOME` that does not exist yet; no setting of the caller's leaks in."""
    home = tmp_path / "swarm-home"
    for name in ("LOG_LEVEL", "LOG_FORMAT", "DEFAULTS", "API_TOKEN", "MAIL_USER"):
        monkeypatch.delenv(f"DOMYN_SWARM_{name}", raising=False)
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(home))
    return home


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_open() -> Iterator[None]:
    """What a module left open is an error of that module, not of the test that runs when Python
    happens to collect garbage.
    """
    yield
    gc.collect()
