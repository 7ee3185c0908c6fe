"""`defaults.yaml`: which keys a person is asked for, and the file that holds the answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domyn_swarm.config.mistakes import validated
from domyn_swarm.config.models import DomynLLMSwarmConfig
from domyn_swarm.config.sources import Layer, merge, parse_yaml
from domyn_swarm.config.starter import PLATFORMS, commented

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


def defaults_text(platform: str, answers: Mapping[str, str], path: Path) -> str:
    """The content of the file at `path`: the answers by dotted key, everything else as comments.

    Raises:
        ConfigError: every answer that cannot be, with its line in that file.
    """
    values: dict[str, Any] = {"backend": {"type": platform}}
    for key, answer in answers.items():
        *sections, name = key.split(".")
        at = values
        for part in sections:
            at = at.setdefault(part, {})
        at[name] = str(Path(answer).expanduser().absolute()) if name == "home_directory" else answer
    text = commented(platform, values, "What every swarm of yours has unless its own file differs")
    least = {"model": "any", "backend": {"type": platform, **_REQUIRED.get(platform, {})}}
    validated(DomynLLMSwarmConfig, merge(Layer(least), parse_yaml(text, str(path))), path)
    return text
