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

from domyn_swarm.config.backends import WrongNames
from domyn_swarm.config.models import DomynLLMSwarmConfig
from domyn_swarm.config.sources import (
    Key,
    Layer,
    dotted,
    from_flag,
    from_override,
    merge,
    read_yaml,
    written,
)
from domyn_swarm.errors import ConfigError
from domyn_swarm.paths import home

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_BACKENDS = ("local", "slurm", "lepton")
_UNIONS = ("backend", "args")  # pydantic puts the branch behind these keys
_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "path_type": "a path",
}


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
    layer = merge(*_read_all([*_defaults(), path]))
    for text in overrides:
        layer = merge(layer, from_override(text))
    for flag, value in (("name", name), ("replicas", replicas)):
        if value is not None:
            layer = merge(layer, from_flag(flag, value))
    layer.values = written(layer.values)
    try:
        config = DomynLLMSwarmConfig.model_validate(layer.values)
    except ValidationError as error:
        raise _config_error([*layer.mistakes, *_lines(error, layer, path)], path) from error
    if layer.mistakes:
        raise _config_error(layer.mistakes, path)
    return LoadedConfig(config, dict(_provenance(config, layer)))


def dump_yaml(config: DomynLLMSwarmConfig) -> str:
    """The whole configuration as YAML that `load` reads back as the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _defaults() -> list[Path]:
    named = os.environ.get("DOMYN_SWARM_DEFAULTS")
    if named:
        return [Path(named)]
    path = home() / "defaults.yaml"
    return [path] if path.exists() else []


def _read_all(paths: Sequence[Path]) -> tuple[Layer, Layer]:
    """The lower and the upper file's layer; when both cannot be read, both are told of."""
    layers: list[Layer] = []
    errors: list[ConfigError] = []
    for path in paths:
        try:
            layers.append(read_yaml(path))
        except ConfigError as error:
            errors.append(error)
    if errors:
        message = "\n".join(error.message for error in errors)
        raise ConfigError(message, hint=errors[0].hint) from errors[0]
    return (layers[0] if len(layers) > 1 else Layer(), layers[-1])


def _provenance(config: DomynLLMSwarmConfig, layer: Layer) -> Iterator[tuple[str, str]]:
    def walk(values: Any, at: Key) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - YAML
        if isinstance(values, Mapping) and values:
            for key, value in values.items():
                yield from walk(value, (*at, key))
        else:
            yield dotted(at), layer.places.get(at, "built-in")

    yield from walk(config.model_dump(mode="json"), ())


# -- mistakes in words ------------------------------------------------------------------------


def _config_error(lines: Sequence[str], path: Path) -> ConfigError:
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return ConfigError(
        "\n".join([f"{path}: {count} in the configuration:", *(f"  {line}" for line in lines)]),
        hint="Nothing was started. docs/configuration.md lists every key.",
    )


def _lines(error: ValidationError, layer: Layer, path: Path) -> list[str]:
    """One line for each mistake, in the order in which the keys were written."""
    order = {key: number for number, key in enumerate(layer.places)}
    found: list[tuple[int, str]] = []
    for detail in error.errors():
        key = _key(detail["loc"])
        for at, words in _words(detail, key, layer):
            written_at = _written(at, layer)
            place = layer.places.get(written_at, str(path))
            found.append((order.get(written_at, -1), f"{place}: {dotted(at)}: {words}"))
    return [line for _, line in sorted(found, key=lambda one: one[0])]


def _key(location: Key) -> Key:
    """Pydantic's location without what is no key of the file."""
    if location[-1:] == ("[key]",):
        location = location[:-1]
    return location[:1] + location[2:] if location[:1] in [(one,) for one in _UNIONS] else location


def _written(key: Key, layer: Layer) -> Key:
    """The key, or the innermost section around it that was written."""
    while key and key not in layer.places:
        key = key[:-1]
    return key


def _words(detail: ErrorDetails, key: Key, layer: Layer) -> Iterator[tuple[Key, str]]:
    """What is wrong and what to write, at each key that it is about."""
    kind = detail["type"]
    mistake = detail.get("ctx", {}).get("error")
    if isinstance(mistake, WrongNames):
        yield from (((*key, name), mistake.why) for name in mistake.names)
    elif kind == "value_error":
        yield key, str(mistake)
    elif kind == "extra_forbidden":
        yield key, _unknown(key, layer)
    elif kind == "missing":
        yield key, "is required"
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        yield (*key, "type"), f"must be one of {', '.join(_BACKENDS)}"
    else:
        message = detail["msg"].replace("Input should be ", "must be ", 1)
        expected = f"must be {_EXPECTED[kind]}" if kind in _EXPECTED else message
        given = detail["input"]
        shown = "" if isinstance(given, Mapping | list | tuple) else f", not {given!r}"
        yield key, f"{expected}{shown}"


def _unknown(key: Key, layer: Layer) -> str:
    name, backend = str(key[-1]), layer.values.get("backend")
    known = _known_keys(key[:-1], backend)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    for section in ("backend", "router", "watchdog"):
        if name in _known_keys((section,), backend):
            return f"unknown key here; it belongs under {section}"
    return f"unknown key; {dotted(key[:-1])} takes {', '.join(known)}" if key[1:] else "unknown key"


def _known_keys(at: Key, backend: object) -> list[str]:
    """The keys that a section takes; `backend` those of the platform that was chosen."""
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
        if part == "backend" and isinstance(backend, Mapping):
            chosen = backend.get("type")
            models = [model for model in models if model.model_fields["type"].default == chosen]
    return [name for model in models for name in model.model_fields]
