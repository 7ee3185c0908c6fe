"""Layers of settings from YAML files and flags. Each value keeps the file and line of its source.

Plain scalars stay text, which the model converts: YAML itself would read `36:00:00` as 129600,
`1.10` as 1.1, `on` as true and `0123` as 83. Only sections without a model of ours, such as
`engine_options`, have YAML's own types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from domyn_swarm.errors import ConfigError, Mistake

Key = tuple[str | int, ...]

_TEXT = "tag:yaml.org,2002:str"
_TIME = "tag:yaml.org,2002:timestamp"
_TYPED = frozenset({_TIME, *(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool"))})
LEFT_OUT: frozenset[Key] = frozenset({("backend", "mem"), ("backend", "endpoint", "mem")})
"""Keys for which an empty value is not the default, but leaves the option out."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file: its words in messages, and its keys that are read differently."""

    name: str
    example: str  # its first line, for example
    reference: str  # a sentence that says where its keys are documented
    opaque: frozenset[str]  # keys whose values have YAML's own types
    instead: Mapping[str, str] = field(default_factory=dict)  # unknown key → what to write instead


CONFIGURATION = FileKind(
    "configuration",
    "model: my/model",
    "`domyn-swarm init config --platform local|slurm|lepton` prints every key with its meaning.",
    frozenset({"engine_options"}),
)


@dataclass
class Layer:
    """One source of settings: values, the place of each key, and mistakes."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)  # those after which reading can continue


def read_yaml(path: Path, kind: FileKind = CONFIGURATION) -> Layer:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        hint = "Check the path."
        raise _unreadable(str(path), f"cannot be read: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        words = f"is not text in UTF-8 (byte {error.start})"
        raise _unreadable(str(path), words, "Save it as UTF-8.") from error
    return parse_yaml(text, str(path), kind)


def parse_yaml(text: str, source: str, kind: FileKind = CONFIGURATION) -> Layer:
    """As `read_yaml`, of a text; messages name `source` instead of a path."""
    layer = Layer()
    try:
        node, values = _construct(text, source, layer, kind.opaque)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise _unreadable(
            f"{source}{line}",
            f"not YAML: {error.problem}",
            "Check indentation and quotation marks on this line and above it.",
        ) from error
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        words = f"not YAML: contains the control character {character}"
        raise _unreadable(f"{source}:{number}", words, "Remove it.") from error
    except RecursionError as error:
        words = "is nested too deeply, or an alias contains itself"
        raise _unreadable(source, words, "Write the values out instead of the alias.") from error
    if node is None or not isinstance(values, dict):
        content = "empty" if values is None else "a list" if isinstance(values, list) else "text"
        raise _unreadable(
            source,
            f"is {content}, not a mapping of keys",
            f"A {kind.name} begins with, for example, `{kind.example}`.",
        )
    layer.values = values
    layer.places |= _places(node, source)
    _spell_out_backend(layer)
    return layer


def _unreadable(place: str, words: str, hint: str) -> ConfigError:
    mistake = Mistake(place, "", words)
    return ConfigError(f"{mistake}.", hint=hint, mistakes=[mistake])


def _construct(
    text: str,
    source: str,
    layer: Layer,
    opaque: frozenset[str] = CONFIGURATION.opaque,
    at: Key = (),
) -> tuple[yaml.Node | None, Any]:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        layer.mistakes.extend(_prepare(node, source, opaque, at))
        return node, loader.construct_document(node)
    finally:
        loader.dispose()


def _prepare(
    node: yaml.Node, source: str, opaque: frozenset[str], at: Key = ()
) -> Iterator[Mistake]:
    """Turn plain scalars into text; yield duplicate keys, of which YAML would keep the last."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        if node.tag == _TIME or (node.tag in _TYPED and opaque.isdisjoint(at)):
            node.tag = _TEXT
        if "\0" in node.value:
            yield Mistake(f"{source}:{line}", dotted(at), "contains a NUL character; remove it")
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _prepare(item, source, opaque, (*at, index))
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}  # key → line of its first occurrence
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            here = (*at, name)
            if name in lines:
                duplicate = f"is a duplicate key, first on line {lines[name]}; remove one"
                yield Mistake(f"{source}:{line}", dotted(here), duplicate)
            lines.setdefault(name, line)
            if key.tag in _TYPED:
                key.tag = _TEXT
            yield from _prepare(value, source, opaque, here)


def _places(node: yaml.Node, source: str, at: Key = ()) -> dict[Key, str]:
    places: dict[Key, str] = {}
    parts: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        parts = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        parts = [(index, value, value) for index, value in enumerate(node.value)]
    for part, start, value in parts:
        here = (*at, part)
        places[here] = f"{source}:{start.start_mark.line + 1}"
        places |= _places(value, source, here)
    return places


class _Readable(yaml.SafeDumper):
    """Writes multi-line text as a block scalar."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar(_TEXT, text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _block)


def yaml_text(layer: Layer) -> str:
    """The values of a layer as YAML, which is read back unchanged."""
    breaks = frozenset("\x85\u2028\u2029")  # line breaks of YAML that must be escaped in text
    odd = not breaks.isdisjoint(yaml.safe_dump(layer.values, allow_unicode=True))
    return yaml.dump(
        layer.values,
        Dumper=yaml.SafeDumper if odd else _Readable,
        sort_keys=False,
        allow_unicode=not odd,
    )


def from_override(text: str) -> Layer:
    """The layer of one `a.b.c=value`, whose value is YAML. An error is a mistake of the layer."""
    name, equals, value = text.partition("=")
    names = name.strip().split(".")
    if not equals or not all(names):
        words = "write key=value, for example replicas=4"
        return Layer(mistakes=[Mistake(f"--set {text}", "", words)])
    layer = Layer()
    try:
        _, parsed = _construct(value, f"--set {text}", layer, at=tuple(names))
    except (yaml.YAMLError, RecursionError):
        words = "the value is not YAML; put it in quotation marks"
        layer.mistakes.append(Mistake(f"--set {text}", "", words))
        return layer
    values: Any = parsed if value.strip() else ""
    for part in reversed(names):
        values = {part: values}
    layer.values = values
    layer.places = {tuple(names[: n + 1]): f"--set {name}" for n in range(len(names))}
    _spell_out_backend(layer)
    return layer


def from_flag(key: str, value: object) -> Layer:
    """The layer of a flag that sets one key, such as `--time-limit` for `backend.time_limit`."""
    names = tuple(key.split("."))
    flag = "--" + names[-1].replace("_", "-").lower()
    values: Any = value
    for part in reversed(names):
        values = {part: values}
    return Layer(values, {names[: n + 1]: flag for n in range(len(names))})


def section_of(layer: Layer, at: Key) -> Layer:
    """One mapping of a layer as a layer of its own. Each key keeps its place."""
    values = value_at(layer.values, at)
    places = {
        key[len(at) :]: place
        for key, place in layer.places.items()
        if len(key) > len(at) and key[: len(at)] == at
    }
    section = Layer(dict(values) if isinstance(values, Mapping) else {}, places)
    _spell_out_backend(section)
    return section


def _spell_out_backend(layer: Layer) -> None:
    """Expand `backend: local` to `backend: {type: local}`, so that layers can be merged."""
    backend = layer.values.get("backend")
    if isinstance(backend, str):
        layer.values["backend"] = {"type": backend}
        layer.places["backend", "type"] = layer.places["backend",]


def dotted(key: Key) -> str:
    """A key in the notation of messages: `a.b.0`."""
    return ".".join(map(str, key))


def merge(lower: Layer, upper: Layer) -> Layer:
    """Both layers: mappings are merged key by key, any other value of `upper` replaces the lower.

    A section without content replaces nothing. A backend of another type replaces the whole
    section.
    """
    values, places = lower.values, lower.places
    if _backend_type(upper) not in (None, _backend_type(lower)):
        values = {name: value for name, value in values.items() if name != "backend"}
        places = {key: place for key, place in places.items() if key[0] != "backend"}
    replaced = {key for key in upper.places if _replaces(values, upper.values, key)}
    kept = {
        key: place
        for key, place in places.items()
        if not any(key[:length] in replaced for length in range(1, len(key) + 1))
    }
    merged = _merged(values, upper.values)
    return Layer(merged, {**kept, **upper.places}, lower.mistakes + upper.mistakes)


def _backend_type(layer: Layer) -> object:
    return value_at(layer.values, ("backend", "type"))


def value_at(values: Any, key: Key) -> Any:  # noqa: ANN401 - YAML
    """The value at a key; None if there is none."""
    for part in key:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _replaces(lower: Any, upper: Any, key: Key) -> bool:  # noqa: ANN401 - YAML
    new = value_at(upper, key)
    if new is None:
        return not isinstance(value_at(lower, key), Mapping)
    return not isinstance(new, Mapping)


def _merged(lower: Any, upper: Any) -> Any:  # noqa: ANN401 - YAML
    if not isinstance(lower, Mapping):
        return upper
    if upper is None:
        return lower
    if not isinstance(upper, Mapping):
        return upper
    both = {key: _merged(lower[key], upper[key]) for key in lower.keys() & upper.keys()}
    return {**lower, **upper, **both}


def written(values: Any, kind: FileKind = CONFIGURATION, at: Key = ()) -> Any:  # noqa: ANN401 - YAML
    """The values without empty keys, which mean the built-in default; `LEFT_OUT` are kept."""
    if not isinstance(values, Mapping) or (len(at) == 1 and at[0] in kind.opaque):
        return values
    return {
        key: written(value, kind, (*at, key))
        for key, value in values.items()
        if value is not None or (*at, key) in LEFT_OUT
    }
