"""What is made from the models: the starter, the defaults file, the schema for editors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from domyn_swarm.config import load
from domyn_swarm.config.defaults import asked_keys, defaults_text
from domyn_swarm.config.models import DomynLLMSwarmConfig
from domyn_swarm.config.sources import read_yaml
from domyn_swarm.config.starter import PLATFORMS, json_schema, starter
from domyn_swarm.errors import ConfigError

_ALL = ("local", "slurm", "lepton")
_SIGN = re.compile(r"(?m)^#(?! \S)")  # before a key; explanations begin with `# `


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def fields(platform: str) -> set[str]:
    """The dotted keys that a configuration for the platform may have."""

    def walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            inner: Any = PLATFORMS[platform] if name == "backend" else field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from walk(inner, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    return set(walk(DomynLLMSwarmConfig, ""))


@pytest.mark.parametrize("platform", _ALL)
def test_a_starter_is_valid_and_its_comments_are_the_truth(platform: str, tmp_path: Path) -> None:
    text = starter(platform)
    loaded = load(written(tmp_path / "starter.yaml", text))
    assert loaded.config.backend.type == platform

    # With every sign taken away it says the same: what it shows is what holds anyway.
    whole = written(tmp_path / "whole.yaml", re.sub(_SIGN, "", text))
    assert load(whole).config == loaded.config
    shown = {".".join(map(str, key)) for key in read_yaml(whole).places}
    assert fields(platform) <= shown


def test_a_starter_takes_values_of_any_look(tmp_path: Path) -> None:
    overrides = [
        "model='it''s: #1'",
        "revision=1.10",
        "replicas=3",
        "env={A: 'x: y', B: null}",
        "backend.time_limit=2-12:00:00",
        "backend.partition=no",
        "watchdog.ray.expected_tp=8",
        "args=[--a, 'b c']",
    ]
    path = written(tmp_path / "x.yaml", starter("slurm", {"name": "mine"}, overrides))
    config: Any = load(path).config
    assert (config.model, config.revision, config.replicas) == ("it's: #1", "1.10", 3)
    assert config.args == ("--a", "b c")
    assert (config.backend.time_limit, config.backend.partition) == ("2-12:00:00", "no")
    assert config.watchdog.ray.expected_tp == 8


def test_what_cannot_be_in_a_starter_is_told_by_its_flag() -> None:
    with pytest.raises(ConfigError) as caught:
        starter("local", {"replicas": 0, "backend.partition": "p"}, ["replcas=3", "router"])
    told = {mistake.place: mistake.key for mistake in caught.value.mistakes}
    assert told == {
        "--set router": "",
        "--replicas": "replicas",
        "--partition": "backend.partition",
        "--set replcas": "replcas",
    }


ANSWERS = {
    "backend.partition": "booster",
    "backend.account": "me",
    "backend.qos": "long",
    "backend.time_limit": "12:00:00",
    "backend.container": "none",
    "backend.venv_path": "/venv",
    "backend.mail_user": "me@example.org",
    "backend.endpoint.partition": "cpu",
    "backend.endpoint.qos": "short",
    "backend.workspace_id": "ws",
    "backend.endpoint.image": "img:1",
    "backend.endpoint.resource_shape": "gpu.h100",
    "backend.endpoint.api_token_secret_name": "token",
    "backend.job.image": "img:2",
    "backend.job.resource_shape": "cpu.large",
    "image": "/images/vllm.sif",
    "gpus_per_node": "8",
    "engine": "sglang",
    "env.HF_HOME": "/models",
    "home_directory": "/shared/swarms",
    "port": "9100",
}


@pytest.mark.parametrize("platform", _ALL)
def test_every_answer_reaches_the_configuration_and_says_so(
    platform: str, swarm_home: Path, tmp_path: Path
) -> None:
    swarm_home.mkdir()
    defaults = swarm_home / "defaults.yaml"
    swarm = written(tmp_path / "x.yaml", "model: m\n")
    for key, meaning in asked_keys(platform).items():
        assert meaning
        required = {"backend.partition": "other"} if platform == "slurm" else {}
        answers = {**required, key: ANSWERS[key]}
        defaults.write_text(defaults_text(platform, answers))
        loaded = load(swarm)
        line = int(loaded.provenance[key].removeprefix(f"{defaults}:"))
        assert key.rpartition(".")[2] in defaults.read_text().splitlines()[line - 1]
        found: Any = loaded.config.model_dump(mode="json")
        for part in key.split("."):
            found = found[part]
        assert str(found) == ANSWERS[key]


def test_wrong_answers_are_all_told() -> None:
    answers = {"backend.time_limit": "soon", "gpus_per_node": "many", "engine": "vlm"}
    with pytest.raises(ConfigError) as caught:
        defaults_text("slurm", answers, ["replcas=1"])
    assert {mistake.key for mistake in caught.value.mistakes} == {*answers, "replcas"}


def test_where_a_value_comes_from_is_told_also_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_MAIL_USER", "me@example.org")
    text = "model: m\nport:\nbackend:\n  type: slurm\n  partition: p\n  mail_user:\n"
    loaded = load(written(tmp_path / "x.yaml", text))
    assert loaded.provenance["backend.mail_user"] == "$DOMYN_SWARM_MAIL_USER"
    assert loaded.provenance["home_directory"] == "$DOMYN_SWARM_HOME"
    assert loaded.provenance["port"] == "built-in"


# -- the schema for editors ----------------------------------------------------------------------


def complaints(text: str) -> list[str]:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    found = Draft202012Validator(schema).iter_errors(yaml.safe_load(text))
    return [error.message for error in found]


@pytest.mark.parametrize("platform", _ALL)
def test_the_schema_takes_what_the_loader_takes(platform: str) -> None:
    text = starter(platform)
    assert complaints(text) == []
    assert complaints(re.sub(_SIGN, "", text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "model: m\nbackend: local\n",
        "model: m\n",  # defaults.yaml may say the rest
        "backend:\n  partition: 12\n",
        "revision: 1.10\nenv: {LEVEL: 1}\nargs: --x\nwatchdog:\nport:\n",
        "args: [--port, 1]\nimage: 3\n",
    ],
)
def test_the_schema_takes_short_forms(text: str) -> None:
    assert complaints(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "replcas: 1\n",
        "replicas: many\n",
        "engine: vlm\n",
        "backend: slrum\n",
        "backend: {type: local, partition: p}\n",
        "watchdog: {max_restart: 1}\n",
        "env: [a]\n",
    ],
)
def test_the_schema_finds_mistakes(text: str) -> None:
    assert complaints(text) != []


def test_every_key_says_what_it_means() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(DomynLLMSwarmConfig.model_fields)
    for name, section in {"": schema, **schema["$defs"]}.items():
        assert section.get("description"), name
        for key, field in section.get("properties", {}).items():
            inner = [one.get("$ref", "") for one in field.get("anyOf", ())]
            referred = any(f"#/$defs/{one}" in inner for one in schema["$defs"])
            assert field.get("description") or referred, f"{name}.{key}"
