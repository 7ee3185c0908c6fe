"""Layers merged first, validated once; every mistake told at once, with its file and line.

Precedence: flags and `--set`, then the YAML file, then `defaults.yaml`, then what is built in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from domyn_swarm.config.models import DomynLLMSwarmConfig
from domyn_swarm.config.sources import Key, Layer, from_flag, from_override, merge, read_yaml
from domyn_swarm.errors import ConfigError
from domyn_swarm.paths import home

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_BACKENDS = ("local", "slurm", "lepton")


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration, and where each of its keys comes from (dotted key → source)."""

    config: DomynLLMSwarmConfig
    provenance: Mapping[str, str]


def load(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    name: str | None = None,
    replicas: int | None = None,
) -> LoadedConfig:
    """The configuration in `path`, with all layers.

    Raises:
        ConfigError: every mistake at once, each with file and line, key, and what to write.
    """
    layer = merge(_defaults(), read_yaml(path))
    for text in overrides:
        layer = merge(layer, from_override(text))
    for flag, value in (("name", name), ("replicas", replicas)):
        if value is not None:
            layer = merge(layer, from_flag(flag, value))
    try:
        config = DomynLLMSwarmConfig.model_validate(layer.values)
    except ValidationError as error:
        raise _config_error(error, layer, path) from error
    return LoadedConfig(config, dict(_provenance(config, layer)))


def dump_yaml(config: DomynLLMSwarmConfig) -> str:
    """The whole configuration as YAML that `load` reads back as the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _defaults() -> Layer:
    named = os.environ.get("DOMYN_SWARM_DEFAULTS")
    if named:
        return read_yaml(Path(named))
    path = home() / "defaults.yaml"
    return read_yaml(path) if path.exists() else Layer()


def _provenance(config: DomynLLMSwarmConfig, layer: Layer) -> Iterator[tuple[str, str]]:
    def walk(values: Any, at: Key) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - YAML
        if isinstance(values, Mapping) and values:
            for key, value in values.items():
                yield from walk(value, (*at, key))
        else:
            yield ".".join(map(str, at)), layer.places.get(at, "built-in")

    yield from walk(config.model_dump(mode="json"), ())


# -- mistakes in words ------------------------------------------------------------------------


def _config_error(error: ValidationError, layer: Layer, path: Path) -> ConfigError:
    lines = [_line(detail, layer, path) for detail in error.errors()]
    lines = list(dict.fromkeys(lines))
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return ConfigError(
        "\n".join([f"{path}: {count} in the configuration:", *lines]),
        hint="Nothing was started. docs/configuration.md lists every key.",
    )


def _line(detail: ErrorDetails, layer: Layer, path: Path) -> str:
    key = tuple(part for part in detail["loc"] if not _is_tag(part, detail["loc"]))
    dotted = ".".join(map(str, key)) or "the whole"
    return f"  {_place(key, layer, path)}: {dotted}: {_words(detail, key)}"


def _is_tag(part: str | int, location: tuple[str | int, ...]) -> bool:
    """Whether a part of pydantic's location is a union's branch and not a key of the file."""
    if part in _BACKENDS:
        return location[:1] == ("backend",)
    return isinstance(part, str) and (part == "str" or part.startswith(("tuple[", "function-")))


def _place(key: Key, layer: Layer, path: Path) -> str:
    while key:
        if key in layer.places:
            return layer.places[key]
        key = key[:-1]
    return str(path)


def _words(detail: ErrorDetails, key: Key) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        close = get_close_matches(str(key[-1]), _known_keys(key[:-1]), n=1, cutoff=0.5)
        return f"unknown key; did you mean {close[0]}?" if close else "unknown key"
    if kind == "missing":
        return "is required"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"type must be one of {', '.join(_BACKENDS)}"
    if kind == "value_error":
        return str(context["error"])
    given = detail["input"]
    shown = "" if isinstance(given, Mapping | list) else f", not {given!r}"
    message = detail["msg"].removeprefix("Input should be ")
    return f"must be {message}{shown}"


def _known_keys(at: Key) -> list[str]:
    """The keys that a section takes; for `backend` those of every platform."""
    models: list[type[BaseModel]] = [DomynLLMSwarmConfig]
    for part in at:
        fields = [model.model_fields.get(str(part)) for model in models]
        models = [
            found
            for one in fields
            if one is not None
            for found in (get_args(one.annotation) or (one.annotation,))
            if isinstance(found, type) and issubclass(found, BaseModel)
        ]
    return [name for model in models for name in model.model_fields]
