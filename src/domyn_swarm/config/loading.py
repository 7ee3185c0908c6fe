"""Loads a configuration: merges its layers, then validates once and reports all mistakes together.

Precedence: flags and `--set`, then the YAML file, then `defaults.yaml`, then the built-in defaults.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from domyn_swarm.config.mistakes import validated
from domyn_swarm.config.models import HIDDEN, REVEALED, DomynLLMSwarmConfig
from domyn_swarm.config.sources import (
    LEFT_OUT,
    Key,
    Layer,
    dotted,
    from_flag,
    from_override,
    merge,
    read_yaml,
    value_at,
)
from domyn_swarm.errors import ConfigError
from domyn_swarm.paths import expanded, home

_VARIABLES: Mapping[Key, str] = {  # environment variables that are the defaults of keys
    ("home_directory",): "DOMYN_SWARM_HOME",
    ("backend", "mail_user"): "DOMYN_SWARM_MAIL_USER",
}


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration, and the source of the value of each key (dotted key → source)."""

    config: DomynLLMSwarmConfig
    provenance: Mapping[str, str]


def load(
    path: Path,
    *,
    upper: Layer | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
    replicas: int | None = None,
) -> LoadedConfig:
    """The configuration in `path`, merged with all layers; `upper` is a layer of a pool's file.

    Raises:
        ConfigError: something is invalid; the message lists every mistake with file, line and key.
    """
    path = expanded(path)  # `--config=~/swarm.yaml` leaves that to us
    layer = merge(merge(*_read_all([*_defaults(), path])), upper or Layer())
    for text in overrides:
        layer = merge(layer, from_override(text))
    for flag, value in (("name", name), ("replicas", replicas)):
        if value is not None:
            layer = merge(layer, from_flag(flag, value))
    config = validated(DomynLLMSwarmConfig, layer, path)
    return LoadedConfig(config, dict(_provenance(config, layer)))


def swarm_name(path: Path) -> str:
    """The name that a configuration gives its swarm.

    Raises:
        ConfigError: the file is invalid, or sets no name.
    """
    name = load(path).config.name
    if name is None:
        raise ConfigError(
            f"{path} sets no name.", hint="Give the swarm's name instead of the file."
        )
    return name


def dump_yaml(config: DomynLLMSwarmConfig) -> str:
    """The whole configuration as YAML, which `load` reads back unchanged.

    In ASCII: YAML would read U+0085 and U+2028 in text as line breaks.
    """
    values = config.model_dump(mode="json", context=REVEALED)
    return yaml.safe_dump(values, sort_keys=False)


def read_dump(path: Path) -> dict[str, Any]:
    """The values that `dump_yaml` wrote, with secrets hidden; empty if there is no such file."""
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    if values.get("notify", {}).get("url"):
        values["notify"]["url"] = HIDDEN
    return values


def defaults_path() -> Path:
    """`$DOMYN_SWARM_DEFAULTS`, else `defaults.yaml` in the home. The file may not exist."""
    return Path(os.environ.get("DOMYN_SWARM_DEFAULTS") or home() / "defaults.yaml").absolute()


def _defaults() -> list[Path]:
    path = defaults_path()
    named = bool(os.environ.get("DOMYN_SWARM_DEFAULTS"))  # such a file must exist
    return [path] if named or path.exists() else []


def _read_all(paths: Sequence[Path]) -> tuple[Layer, Layer]:
    """The layers of the lower and of the upper file. One error reports all unreadable files."""
    layers: list[Layer] = []
    errors: list[ConfigError] = []
    for path in paths:
        try:
            layers.append(read_yaml(path))
        except ConfigError as error:
            errors.append(error)
    if errors:
        message = "\n".join(error.message for error in errors)
        mistakes = [mistake for error in errors for mistake in error.mistakes]
        raise ConfigError(message, hint=errors[0].hint, mistakes=mistakes) from errors[0]
    return (layers[0] if len(layers) > 1 else Layer(), layers[-1])


def _provenance(config: DomynLLMSwarmConfig, layer: Layer) -> Iterator[tuple[str, str]]:
    def walk(values: Any, at: Key) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - YAML
        if isinstance(values, Mapping) and values:
            for key, value in values.items():
                yield from walk(value, (*at, key))
        else:
            yield dotted(at), _source(at, layer)

    yield from walk(config.model_dump(mode="json"), ())


def _source(key: Key, layer: Layer) -> str:
    """The source of a key's value. A key without a value has the built-in default."""
    if key in layer.places and (key in LEFT_OUT or value_at(layer.values, key) is not None):
        return layer.places[key]
    variable = _VARIABLES.get(key, "")
    return f"${variable}" if os.environ.get(variable) else "built-in"
