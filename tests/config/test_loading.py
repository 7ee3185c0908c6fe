"""Layers, provenance, and every mistake told at once with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from domyn_swarm.config import DomynLLMSwarmConfig, dump_yaml, load
from domyn_swarm.config.models import json_schema
from domyn_swarm.config.sources import parse_yaml
from domyn_swarm.errors import ConfigError

GOOD = """\
name: demo
model: my/model
engine: sim
replicas: 3
env:
  HF_HOME: /models
  LEVEL: 1
backend: local
watchdog:
  max_restarts: 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    return path


def mistakes(text: str, tmp_path: Path, **options: Any) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, **options)
    return str(caught.value).replace(str(path), "bad.yaml")


def test_a_file_is_read(file: Path) -> None:
    config = DomynLLMSwarmConfig.read(file)
    assert (config.name, config.replicas, config.backend.type) == ("demo", 3, "local")
    assert config.env == {"HF_HOME": "/models", "LEVEL": "1"}
    assert config.watchdog.max_restarts == 1
    assert config.watchdog.probe_interval == 30


def test_whichever_layer_sets_a_key_wins_in_order(
    file: Path, swarm_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    swarm_home.mkdir()
    defaults = swarm_home / "defaults.yaml"
    defaults.write_text("replicas: 7\nport: 9000\nwatchdog: {max_restarts: 9, http_timeout: 5}\n")
    loaded = load(file)
    config = loaded.config
    assert (config.replicas, config.port) == (3, 9000)
    assert (config.watchdog.max_restarts, config.watchdog.http_timeout) == (1, 5.0)
    assert loaded.provenance["port"] == f"{defaults}:2"
    assert loaded.provenance["replicas"] == f"{file}:4"
    assert loaded.provenance["watchdog.max_restarts"] == f"{file}:10"
    assert loaded.provenance["min_ready"] == "built-in"
    loaded = load(file, overrides=["replicas=5", "watchdog.http_timeout=9"], name="other")
    assert (loaded.config.replicas, loaded.config.watchdog.http_timeout) == (5, 9.0)
    assert loaded.config.name == "other"
    assert loaded.provenance["replicas"] == "--set replicas"
    assert load(file, overrides=["replicas=5"], replicas=6).config.replicas == 6
    other = tmp_path / "other-defaults.yaml"
    other.write_text("port: 9100\n")
    monkeypatch.setenv("DOMYN_SWARM_DEFAULTS", str(other))
    assert load(file).config.port == 9100


def test_overrides_are_yaml_values(file: Path) -> None:
    overrides = ["args=[--a, --b]", "env.X=1", "backend={type: slurm, partition: p}", "image="]
    config = load(file, overrides=overrides).config
    assert config.args == ("--a", "--b")
    assert config.env == {"HF_HOME": "/models", "LEVEL": "1", "X": "1"}
    assert config.backend.type == "slurm"
    assert config.image == ""


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = """\
model: m
replica: 3
replicas: many
engine: vlm
backend:
  type: slurm
  time_limit: soon
  partitin: gpu
watchdog:
  restart_policy: sometimes
router: {tls_cert: /nowhere}
name: Not_Good
"""
    assert mistakes(text, tmp_path).splitlines()[:-1] == [
        "bad.yaml: 9 mistakes in the configuration:",
        "  bad.yaml:12: name: must be lower-case letters, digits and hyphens, begin with a letter, "
        "at most 40",
        "  bad.yaml:4: engine: must be 'vllm', 'llamacpp', 'sglang', 'sim' or 'command', not 'vlm'",
        "  bad.yaml:3: replicas: must be a valid integer, unable to parse string as an integer, "
        "not 'many'",
        "  bad.yaml:11: router: tls_cert and tls_key are given together or not at all",
        "  bad.yaml:5: backend.partition: is required",
        "  bad.yaml:7: backend.time_limit: is not a time like 36:00:00, 90 (minutes) or "
        "2-12:00:00 (days)",
        "  bad.yaml:8: backend.partitin: unknown key; did you mean partition?",
        "  bad.yaml:10: watchdog.restart_policy: must be 'on-failure', 'always' or 'never', "
        "not 'sometimes'",
        "  bad.yaml:2: replica: unknown key; did you mean replicas?",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty, not a mapping"),
        ("- a\n", "is a list, not a mapping"),
        ("a: [1\n", "bad.yaml:2: not YAML"),
        ("model: a\nmodel: b\n", "bad.yaml:2: model: stands twice, first on line 1"),
        ("model: a\nbackend: {type: slrm}\n", "type must be one of local, slurm, lepton"),
        ("model: a\nbackend: {}\n", "type must be one of local, slurm, lepton"),
        ("backend: local\n", "model: is required"),
        ("model: a\n", "backend: is required"),
        ("model: a\nbackend: local\nmin_ready: 2\n", "min_ready (2) is more than replicas (1)"),
        ("model: a\nbackend: local\nreplicas: 0\n", "bad.yaml:3: replicas: must be greater"),
        ("model: a\nbackend: local\nport: 70000\n", "bad.yaml:3: port"),
        (
            "model: a\nbackend: local\nenv:\n  HF_TOKEN: x\n",
            "bad.yaml:3: env: HF_TOKEN looks like a secret",
        ),
        ("model: a\nbackend: local\nargs: {a: 1}\n", "bad.yaml:3: args"),
    ],
)
def test_mistakes(text: str, words: str, tmp_path: Path) -> None:
    assert words in mistakes(text, tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path)


@pytest.mark.parametrize("text", ["replicas", "=3", "a..b=1", "a=[1"])
def test_overrides_that_are_none(text: str, file: Path) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load(file, overrides=[text])


def test_an_override_that_is_wrong_is_named_as_one(file: Path) -> None:
    with pytest.raises(ConfigError, match="--set replicas: replicas: must be"):
        load(file, overrides=["replicas=none-at-all"])


def test_a_dumped_configuration_is_read_back_as_the_same(file: Path, tmp_path: Path) -> None:
    overrides = [
        "backend={type: slurm, partition: p, mounts: {/a: /b}}",
        "args=[--x, '{\"a\": 1}']",
    ]
    config = load(file, overrides=overrides).config
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_yaml(config))
    assert load(copy).config == config


def test_every_key_is_in_the_schema() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(DomynLLMSwarmConfig.model_fields)


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        st.recursive(
            st.integers() | st.text("xyz: '\"#\n", max_size=6) | st.booleans(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_yaml_is_read_as_it_was_written(values: dict[str, Any]) -> None:
    layer = parse_yaml(yaml.safe_dump(values), "x")
    assert layer.values == values
    for key in values:
        assert (key,) in layer.places
