"""The commented configuration of `init config`, and the JSON Schema for editors, both generated
from the models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from domyn_swarm.config.backends import LeptonConfig, LocalConfig, SlurmConfig
from domyn_swarm.config.mistakes import validated
from domyn_swarm.config.models import DomynLLMSwarmConfig
from domyn_swarm.config.sources import Key, Layer, from_flag, from_override, merge

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT = ["string", "number", "boolean"]  # the loader reads `1.10` and `on` as text


def json_schema() -> dict[str, Any]:
    """The schema of a configuration. Every key has a description."""
    schema = DomynLLMSwarmConfig.model_json_schema()
    platforms = list(schema["properties"]["backend"]["discriminator"]["mapping"])
    loosen(schema)
    schema["properties"]["backend"]["anyOf"].append({"enum": platforms})
    return {"$schema": DIALECT, **schema, "title": "A swarm of domyn-swarm"}


def loosen(schema: dict[str, Any]) -> None:
    """Change a model's schema in place: allow missing and empty keys, and text without quotes."""
    for section in (schema, *schema.get("$defs", {}).values()):
        _loosen(section)


def _loosen(section: dict[str, Any]) -> None:
    """Make every key of a section optional, and allow it to be empty."""
    section.pop("required", None)
    for key, field in section.get("properties", {}).items():
        section["properties"][key] = _or_empty(_with_text(field))


def _with_text(field: dict[str, Any]) -> dict[str, Any]:
    """Allow a number or a boolean wherever the schema has text."""
    loose = dict(field)
    if loose.get("type") == "string" and not loose.keys() & {"enum", "const"}:
        loose["type"] = _TEXT
    for inner in ("items", "additionalProperties"):
        if isinstance(loose.get(inner), dict):
            loose[inner] = _with_text(loose[inner])
    loose.pop("discriminator", None)
    choices = [*loose.pop("oneOf", ()), *loose.pop("anyOf", ())]
    return {**loose, "anyOf": [_with_text(choice) for choice in choices]} if choices else loose


def _or_empty(field: dict[str, Any]) -> dict[str, Any]:
    if {"type": "null"} in field.get("anyOf", ()):
        return field
    about: dict[str, Any] = {
        name: field[name] for name in ("title", "description", "default") if name in field
    }
    rest = {name: value for name, value in field.items() if name not in about}
    choices = rest["anyOf"] if rest.keys() == {"anyOf"} else [rest]
    return {**about, "anyOf": [*choices, {"type": "null"}]}


PLATFORMS: Mapping[str, type[BaseModel]] = {
    "local": LocalConfig,
    "slurm": SlurmConfig,
    "lepton": LeptonConfig,
}
_BEGIN: Mapping[str, dict[str, Any]] = {
    "local": {
        "model": "smollm2-135m-instruct",
        "engine": "llamacpp",
        "backend": {"type": "local"},
    },
    "slurm": {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "engine": "vllm",
        "backend": {"type": "slurm", "partition": "gpu"},
    },
    "lepton": {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "engine": "vllm",
        "backend": {"type": "lepton", "endpoint": {"image": "vllm/vllm-openai:latest"}},
    },
}
_WIDTH = 98
_PLAIN = re.compile(r"-?[0-9][0-9.:]*|true|false")


def starter(
    platform: str, flags: Mapping[str, object] | None = None, overrides: Sequence[str] = ()
) -> str:
    """A configuration for a platform, with `flags` (by dotted key) and `overrides` (`key=value`).

    Raises:
        ConfigError: a flag or override is invalid; the message lists all of them.
    """
    layer = merge(Layer(dict(_BEGIN[platform])), layer_of(flags or {}, overrides))
    validated(DomynLLMSwarmConfig, layer, Path("init config"))
    return commented(platform, layer.values, f"A swarm: domyn-swarm up -c FILE ({platform})")


def layer_of(flags: Mapping[str, object], overrides: Sequence[str]) -> Layer:
    """The layer of flags and overrides."""
    layer = Layer()
    for key, value in flags.items():
        layer = merge(layer, from_flag(key, value))
    for text in overrides:
        layer = merge(layer, from_override(text))
    return layer


def commented(platform: str, values: Mapping[str, Any], title: str) -> str:
    """Every key of a platform's configuration as YAML: keys in `values` are set, all others are
    comments with their defaults.
    """
    head = [
        f"# {title}",
        "# A commented key shows its default: remove the `#` to set another value.",
        "",
    ]
    body = _section(DomynLLMSwarmConfig, values, (), platform, active=True)
    return "\n".join([*head, *body]) + "\n"


def _section(
    model: type[BaseModel], values: Mapping[str, Any], at: Key, platform: str, *, active: bool
) -> Iterator[str]:
    """The lines of a section: its own keys, then its subsections."""
    indent = "  " * len(at)
    mark = "" if active else "#"
    fields = model.model_fields
    below = {name: inner for name in fields if (inner := _model_of(fields[name], name, platform))}
    for name, field in fields.items():
        if name not in below:
            yield from _commented(f"{indent}# ", _about(field))
            given = name in values
            value = values[name] if given else _default(field)
            yield f"{mark if given else '#'}{indent}{name}:{_scalar(value)}"
    for name, inner in below.items():
        yield ""
        yield from _commented(f"{indent}# ", _doc(inner))
        yield f"{mark if name in values else '#'}{indent}{name}:"
        shown = active and name in values
        yield from _section(inner, values.get(name) or {}, (*at, name), platform, active=shown)


def _model_of(field: FieldInfo, name: str, platform: str) -> type[BaseModel] | None:
    if name == "backend":
        return PLATFORMS[platform]
    model = field.annotation
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _about(field: FieldInfo) -> str:
    """The description of a key, with its values if it is an enumeration."""
    words = field.description or ""
    choices = _choices(field.annotation)
    return f"{words} ({' | '.join(choices)})" if len(choices) > 1 else words


def _choices(annotation: Any) -> list[str]:  # noqa: ANN401 - a type
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if isinstance(annotation, UnionType):
        return [choice for branch in get_args(annotation) for choice in _choices(branch)]
    return []


def _default(field: FieldInfo) -> Any:  # noqa: ANN401 - a key's value
    """The default of a key; None if it depends on something else."""
    if field.default is not PydanticUndefined:
        return list(field.default) if isinstance(field.default, tuple) else field.default
    default: Any = field.default_factory() if field.default_factory else None  # type: ignore[call-arg]
    return default if default == {} else None


def _scalar(value: Any) -> str:  # noqa: ANN401 - a key's value
    if value is None:
        return ""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return f" {value}"  # the loader reads it as text
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    text = yaml.safe_dump(
        value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return " " + text.removesuffix("...\n").strip()


def _doc(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _commented(prefix: str, words: str) -> list[str]:
    return [prefix + line for line in wrap(words, _WIDTH - len(prefix))]
