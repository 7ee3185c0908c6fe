"""Fixtures of the endpoint's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from domyn_swarm.paths import SwarmPaths, write_private
from endpoint.bench import API_KEY, COLLECTOR_KEY, Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    paths = SwarmPaths(tmp_path / "swarm")
    write_private(paths.api_key, API_KEY)
    write_private(paths.collector_key, COLLECTOR_KEY)
    made = Bench(paths, tmp_path)
    yield made
    made.end()
