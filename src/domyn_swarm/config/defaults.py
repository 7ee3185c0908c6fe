"""`defaults.yaml`: which keys a person is asked for, and the file that holds the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domyn_swarm.config.mistakes import validated
from domyn_swarm.config.models import DomynLLMSwarmConfig
from domyn_swarm.config.sources import Layer, merge, read_yaml, value_at
from domyn_swarm.config.starter import PLATFORMS, commented, layer_of
from domyn_swarm.paths import expanded

_EVERYWHERE = ("engine", "env.HF_HOME", "home_directory")
_ASKED: Mapping[str, tuple[str, ...]] = {
    "local": (*_EVERYWHERE, "gpus_per_node", "port"),
    "slurm": (
        "backend.partition",
        "backend.account",
        "backend.qos",
        "backend.time_limit",
        "backend.container",
        "image",
        "backend.venv_path",
        "backend.mail_user",
        "backend.endpoint.partition",
        "backend.endpoint.qos",
        "gpus_per_node",
        *_EVERYWHERE,
    ),
    "lepton": (
        "backend.workspace_id",
        "backend.endpoint.image",
        "backend.endpoint.resource_shape",
        "backend.endpoint.api_token_secret_name",
        "backend.job.image",
        "backend.job.resource_shape",
        "gpus_per_node",
        *_EVERYWHERE,
    ),
}
_WORDS = {"env.HF_HOME": "where engines keep the models of the Hugging Face hub"}
_REQUIRED = {"slurm": {"partition": "any"}}  # of the backend; a swarm's own file may give it


def asked_keys(platform: str) -> Mapping[str, str]:
    """The keys that differ from site to site, each with its meaning."""
    return {key: _WORDS.get(key) or _description(key, platform) for key in _ASKED[platform]}


def _description(key: str, platform: str) -> str:
    *sections, name = key.split(".")
    model: Any = DomynLLMSwarmConfig
    for part in sections:
        model = PLATFORMS[platform] if part == "backend" else model.model_fields[part].annotation
    return str(model.model_fields[name].description)


def defaults_text(
    platform: str, answers: Mapping[str, object], overrides: Sequence[str] = ()
) -> str:
    """The content of the file: the answers by dotted key and the overrides (`key=value`);
    everything else as comments.

    Raises:
        ConfigError: every answer and override that cannot be.
    """
    given = merge(Layer({"backend": {"type": platform}}), layer_of(answers, overrides))
    folder = given.values.get("home_directory")
    if isinstance(folder, str):  # the file holds wherever it is read from
        given.values["home_directory"] = str(expanded(folder).absolute())
    _validate(given, Path("The new defaults"))
    title = "What every swarm of yours has unless its own file differs"
    return commented(platform, given.values, title)


def check_defaults(path: Path) -> None:
    """Whether the file may stand under any configuration.

    Raises:
        ConfigError: every mistake in it, each at its line.
    """
    _validate(read_yaml(path), path)


def _validate(layer: Layer, path: Path) -> None:
    """With the least that a swarm's own file has to add."""
    platform = value_at(layer.values, ("backend", "type")) or "local"
    backend = {"type": platform, **_REQUIRED.get(str(platform), {})}
    validated(DomynLLMSwarmConfig, merge(Layer({"model": "any", "backend": backend}), layer), path)
