"""Validation errors of pydantic as mistakes of a file, each with line, key and what to write."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from domyn_swarm.config.sources import CONFIGURATION, FileKind, Key, Layer, dotted, written
from domyn_swarm.errors import ConfigError, Mistake, quantity

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_BACKENDS = ("local", "slurm", "lepton")
_LIMIT = ("backend", "time_limit")  # one, too
_UNIONS = ("backend", "args", "replicas")  # in pydantic's locations, a branch follows these keys
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


_OLDER = {
    "nginx_image": "is a key of an earlier version: remove it, this program contains the router",
    "lb_wait": "is a key of an earlier version: it is now called wait_endpoint_s",
}
"""Keys of configurations of earlier versions that have another name or none."""
_FILES = (
    (("swarms",), "a pool's file: domyn-swarm pool up"),
    (("input", "output"), "a job's file: domyn-swarm job submit -f"),
    (("backend",), "a swarm's configuration: domyn-swarm up"),
)
"""Keys by which a file of another kind is recognised, and what takes it."""
_Model = TypeVar("_Model", bound=BaseModel)


class WrongNames(ValueError):
    """Some keys of a mapping are invalid. Each is reported at its own line."""

    def __init__(self, names: Iterable[str], why: str) -> None:
        self.names = sorted(names)
        self.why = why
        super().__init__(f"{', '.join(self.names)} {why}")


def validated(
    model: type[_Model], layer: Layer, path: Path, kind: FileKind = CONFIGURATION
) -> _Model:
    """The model of a layer's values. A mistake without a line is reported at `path`.

    Raises:
        ConfigError: a value is invalid; the message lists every mistake.
    """
    try:
        config = model.model_validate(written(layer.values, kind))
    except ValidationError as error:
        wrong = [*layer.mistakes, *_mistakes(error, model, layer, path, kind)]
        raise config_error(wrong, path, kind, _of_another_kind(model, layer, path)) from error
    if layer.mistakes:
        raise config_error(layer.mistakes, path, kind)
    return config


def config_error(
    mistakes: Sequence[Mistake], path: Path, kind: FileKind = CONFIGURATION, instead: str = ""
) -> ConfigError:
    """All of a file's mistakes as one error; `instead` is the hint in place of the usual one."""
    count = quantity(len(mistakes), "mistake")
    lines = [f"{path}: {count} in the {kind.name}:", *(f"  {one}" for one in mistakes)]
    return ConfigError(
        "\n".join(lines),
        hint=f"Nothing was started. {instead or kind.reference}",
        mistakes=mistakes,
    )


def _of_another_kind(model: type[BaseModel], layer: Layer, path: Path) -> str:
    """The hint for a file that is not of the model's kind; empty if it may be."""
    for keys, what in _FILES:
        if keys[0] in model.model_fields:
            continue
        if all(key in layer.values for key in keys):
            return f"This is {what} {shlex.quote(str(path))}"
    return ""


def _mistakes(
    error: ValidationError, model: type[BaseModel], layer: Layer, path: Path, kind: FileKind
) -> list[Mistake]:
    """The mistakes, in the order of the keys in the file."""
    order = {key: number for number, key in enumerate(layer.places)}
    numbered: list[tuple[int, Mistake]] = []
    for detail in error.errors():
        key = _key(detail["loc"])
        for at, words in _words(detail, key, model, layer, kind):
            written_at = _written(at, layer)
            place = layer.places.get(written_at, str(path))
            numbered.append((order.get(written_at, -1), Mistake(place, dotted(at), words)))
    return [mistake for _, mistake in sorted(numbered, key=lambda entry: entry[0])]


def _key(location: Key) -> Key:
    """Pydantic's location without the parts that are not keys of the file."""
    if location[-1:] == ("[key]",):
        location = location[:-1]
    is_union = location[:1] in [(key,) for key in _UNIONS]
    location = location[:1] + location[2:] if is_union else location
    return location[:2] + location[3:] if location[:2] == _LIMIT else location


def _written(key: Key, layer: Layer) -> Key:
    """The key, or the innermost enclosing section that the file contains."""
    while key and key not in layer.places:
        key = key[:-1]
    return key


def _words(
    detail: ErrorDetails, key: Key, model: type[BaseModel], layer: Layer, kind: FileKind
) -> Iterator[tuple[Key, str]]:
    """Each key that an error concerns, with a message that says what to write."""
    wrong = detail["type"]
    mistake = detail.get("ctx", {}).get("error")
    if isinstance(mistake, WrongNames):
        yield from (((*key, name), mistake.why) for name in mistake.names)
    elif wrong == "value_error":
        yield key, str(mistake)
    elif wrong == "extra_forbidden":
        yield key, _unknown(key, model, layer, kind)
    elif wrong == "missing":
        yield key, "is required"
    elif wrong in ("union_tag_invalid", "union_tag_not_found"):
        yield (*key, "type"), f"must be one of {', '.join(_BACKENDS)}"
    else:
        message = detail["msg"].replace("Input should be ", "must be ", 1)
        expected = f"must be {_EXPECTED[wrong]}" if wrong in _EXPECTED else message
        given = detail["input"]
        shown = "" if isinstance(given, Mapping | list | tuple) else f", not {given!r}"
        yield key, f"{expected}{shown}"


def _unknown(key: Key, model: type[BaseModel], layer: Layer, kind: FileKind) -> str:
    name, backend = str(key[-1]), layer.values.get("backend")
    if not key[1:] and name in kind.instead:
        return f"unknown key; {kind.instead[name]}"
    if name in _OLDER:
        return _OLDER[name]
    if places := _places_of(name, model, backend):
        return f"unknown key here; it belongs {places}"
    known = _known_keys(model, key[:-1], backend)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    return f"unknown key; {dotted(key[:-1])} takes {', '.join(known)}" if key[1:] else "unknown key"


def _places_of(name: str, model: type[BaseModel], backend: object) -> str:
    """The sections that have a key of that name, as a phrase; empty if there are none."""
    places = [
        f"under {dotted(at)}" if at else "at the top level"
        for at in _sections(model, (), backend)
        if name in _known_keys(model, at, backend)
    ]
    if not places and "backend" in model.model_fields:
        places = [
            f"to a backend of type {other}"
            for other in _BACKENDS
            if name in _known_keys(model, ("backend",), {"type": other})
        ]
    return " or ".join(places)


def _sections(model: type[BaseModel], at: Key, backend: object) -> Iterator[Key]:
    """The keys of all sections of a file; the empty key of the top level first."""
    yield at
    for name in _known_keys(model, at, backend):
        if _known_keys(model, (*at, name), backend):
            yield from _sections(model, (*at, name), backend)


def _known_keys(root: type[BaseModel], at: Key, backend: object) -> list[str]:
    """The keys of a section. The section `backend` has those of the chosen platform."""
    models = [root]
    for part in at:
        if isinstance(part, int):  # an index: the annotation of the list contains the item's model
            continue
        fields = [model.model_fields.get(str(part)) for model in models]
        models = [
            inner for field in fields if field is not None for inner in _models(field.annotation)
        ]
        if part == "backend" and isinstance(backend, Mapping):
            chosen = backend.get("type")
            models = [model for model in models if model.model_fields["type"].default == chosen]
    return [name for model in models for name in model.model_fields]


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """The models in the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for branch in get_args(annotation):
        yield from _models(branch)
