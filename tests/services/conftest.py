"""The services over a model's server that `bench` has."""

from __future__ import annotations

import pytest

from domyn_swarm.services.jobs import JobService
from model_server import KEY


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> JobService:
    """Jobs; the environment has the server's key."""
    monkeypatch.setenv("DOMYN_SWARM_API_TOKEN", KEY)
    return JobService()
