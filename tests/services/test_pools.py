"""What a pool file may say; bringing one up is for the acceptance tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import write_sim_config
from domyn_swarm.errors import ConfigError
from domyn_swarm.services.pools import PoolService


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["swarms: []"], "swarms: must list at least one swarm"),
        (["swarm: [{config: alpha.yaml}]"], "unknown key; did you mean swarms?"),
        (["swarms: [{config: alpha.yaml, replcas: 2}]"], "unknown key; did you mean replicas?"),
        (["swarms: [{name: alpha}]"], "swarms.0.config: is required"),
        (["swarms:", "  - {config: alpha.yaml}", "  - {config: alpha.yaml}"], ":4: swarms.1.name"),
        (["max_parallel: 0", "swarms: [{config: alpha.yaml}]"], "max_parallel"),
        (["swarms: [{config: alpha.yaml, overrides: {engine: command}}]"], "argv"),
        (["swarms: [{config: alpha.yaml, name: Not_Good}]"], "lower-case"),
        (["swarms: [{config: alpha.yaml, overrides: [1]}]"], "must be a mapping of keys"),
        (["swarms: [alpha.yaml]"], "swarms.0: must be a mapping of keys"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, lines: list[str], said: str) -> None:
    write_sim_config(tmp_path, "alpha")
    path = tmp_path / "pool.yaml"
    path.write_text("\n".join(["name: fleet", *lines]) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        PoolService.prepare(path)
    assert len(caught.value.mistakes) == (2 if "swarm: " in lines[0] else 1), str(caught.value)
    assert said in str(caught.value)


def test_names_are_the_same_in_every_reading(tmp_path: Path) -> None:
    write_sim_config(tmp_path, None)
    path = tmp_path / "pool.yaml"
    entry = "  - {config: unnamed.yaml}"
    path.write_text("\n".join(["name: fleet", "swarms:", entry, entry]) + "\n", encoding="utf-8")
    for _ in range(2):
        assert [one.name for one in PoolService.prepare(path).swarms] == ["fleet-1", "fleet-2"]
    path.write_text(path.read_text().replace("fleet", "f" * 40))
    with pytest.raises(ConfigError, match=r"name: .*at most 35"):
        PoolService.prepare(path)
