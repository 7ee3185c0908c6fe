"""The stand-in workspace, for every test that wants one; nothing of it stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton.workspace import ID, TOKEN, StandIn


@pytest.fixture(scope="session")
def lepton_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    made = StandIn(tmp_path_factory.mktemp("workspace"))
    yield made
    made.close()


@pytest.fixture
def lepton(lepton_server: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """An empty workspace, named by the environment of this test."""
    from leptonai.api.v2 import reset_new_deployment_api_flag_cache

    reset_new_deployment_api_flag_cache()
    for name in ("LEPTON_WORKSPACE_TOKEN", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LEPTON_WORKSPACE_ID", ID)
    monkeypatch.setenv("LEPTON_WORKSPACE_URL", lepton_server.url)
    monkeypatch.setenv("LEPTONAI_API_TOKEN", TOKEN)
    monkeypatch.setenv("LEPTON_CACHE_DIR", str(lepton_server.folder / "cache"))
    yield lepton_server
    with lepton_server.lock:
        lepton_server.clear()


SECTION = {
    "type": "lepton",
    "endpoint": {"image": "engines:1", "resource_shape": "cpu.small"},
    "job": {
        "image": "domyn-swarm:1",
        "mounts": [{"path": "/", "volume": "node-nfs:shared", "mount_path": "/tmp"}],
    },
}


def section(folder: Path) -> dict:
    """The backend's part of a configuration whose shared storage is that folder."""
    mount = {"path": "/", "volume": "node-nfs:shared", "mount_path": str(folder)}
    return {**SECTION, "job": {**SECTION["job"], "mounts": [mount]}}
