"""YAML with a memory: every value knows the file and line it was written on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from domyn_swarm.errors import ConfigError

Key = tuple[str | int, ...]


@dataclass
class Layer:
    """One source of settings: plain values, and where each key was written."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)


def read_yaml(path: Path) -> Layer:
    """The mapping in a YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or is not a mapping with unique keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}.", hint="Check the path given with -c."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Layer:
    """The same for text; `source` stands before each line number."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            _check_keys(node, source)
            values = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: not YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {error}.") from error
    if node is None or not isinstance(values, dict):
        found = "empty" if values is None else f"a {type(values).__name__}"
        raise ConfigError(
            f"{source}: is {found}, not a mapping of keys.",
            hint="A configuration begins with, for example, `model: my/model`.",
        )
    return Layer(values, dict(_places(node, source)))


def _check_keys(node: yaml.Node | None, source: str) -> None:
    """Refuse keys that stand twice or are no text: YAML itself would take the last silently."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, source)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        name = str(key.value)
        if name in seen:
            raise ConfigError(f"{source}:{line}: {name}: stands twice, first on line {seen[name]}.")
        seen[name] = line
        _check_keys(value, source)


def _places(node: yaml.Node, source: str, at: Key = ()) -> Iterator[tuple[Key, str]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            yield here, f"{source}:{key.start_mark.line + 1}"
            yield from _places(value, source, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*at, index)
            yield here, f"{source}:{value.start_mark.line + 1}"
            yield from _places(value, source, here)


def from_override(text: str) -> Layer:
    """A layer from one `a.b.c=value`; the value is read as YAML.

    Raises:
        ConfigError: it has no `=`, or the value is not YAML.
    """
    dotted, equals, value = text.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(
            f"--set {text}: is not of the form key=value.", hint="For example --set replicas=4."
        )
    try:
        parsed = yaml.safe_load(value) if value else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not YAML.") from error
    values: Any = parsed
    for name in reversed(names):
        values = {name: values}
    places: dict[Key, str] = {tuple(names[: n + 1]): f"--set {dotted}" for n in range(len(names))}
    return Layer(values, places)


def from_flag(name: str, value: object) -> Layer:
    """A layer from a flag of its own, such as `--replicas`."""
    return Layer({name: value}, {(name,): f"--{name}"})


def merge(lower: Layer, upper: Layer) -> Layer:
    """Both layers; mappings are merged key by key, anything else of `upper` replaces."""
    values = _merged(lower.values, upper.values)
    replaced = {key for key in upper.places if not _is_mapping(upper.values, key)}
    kept = {
        key: place
        for key, place in lower.places.items()
        if not any(key[: len(gone)] == gone for gone in replaced)
    }
    return Layer(values, {**kept, **upper.places})


def _merged(lower: Any, upper: Any) -> Any:  # noqa: ANN401 - YAML
    if isinstance(lower, Mapping) and isinstance(upper, Mapping):
        both = {key: _merged(lower[key], upper[key]) for key in lower.keys() & upper.keys()}
        return {**lower, **upper, **both}
    return upper


def _is_mapping(values: Any, key: Key) -> bool:  # noqa: ANN401 - YAML
    for part in key:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return False
    return isinstance(values, Mapping)
