"""The JSON Schema of a configuration file, for editors (yaml-language-server and its like).

It follows what the loader takes, not only what the models mean: plain text of any look, sections
without content, `backend: local`, and keys that `defaults.yaml` may give instead. It is therefore
good for `defaults.yaml`, too. What it lets through wrongly, `config check` finds.
"""

from __future__ import annotations

from typing import Any

from domyn_swarm.config.models import DomynLLMSwarmConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT = ["string", "number", "boolean"]  # the loader takes `1.10` and `on` as they are written


def json_schema() -> dict[str, Any]:
    """The schema; every key has a description."""
    schema = DomynLLMSwarmConfig.model_json_schema()
    platforms = list(schema["properties"]["backend"]["discriminator"]["mapping"])
    loosen(schema)
    schema["properties"]["backend"]["anyOf"].append({"enum": platforms})
    return {"$schema": DIALECT, **schema, "title": "A swarm of domyn-swarm"}


def loosen(schema: dict[str, Any]) -> None:
    """Have a model's schema allow what layers may leave out or write otherwise, in place."""
    for section in (schema, *schema.get("$defs", {}).values()):
        _loosen(section)


def _loosen(section: dict[str, Any]) -> None:
    """Require nothing, and let every key be empty."""
    section.pop("required", None)
    for key, field in section.get("properties", {}).items():
        section["properties"][key] = _or_empty(_with_text(field))


def _with_text(field: dict[str, Any]) -> dict[str, Any]:
    """Text may look like a number or a truth value."""
    found = dict(field)
    if found.get("type") == "string" and not found.keys() & {"enum", "const"}:
        found["type"] = _TEXT
    for inner in ("items", "additionalProperties"):
        if isinstance(found.get(inner), dict):
            found[inner] = _with_text(found[inner])
    found.pop("discriminator", None)
    choices = [*found.pop("oneOf", ()), *found.pop("anyOf", ())]
    return {**found, "anyOf": [_with_text(one) for one in choices]} if choices else found


def _or_empty(field: dict[str, Any]) -> dict[str, Any]:
    if {"type": "null"} in field.get("anyOf", ()):
        return field
    about: dict[str, Any] = {
        name: field[name] for name in ("title", "description", "default") if name in field
    }
    rest = {name: value for name, value in field.items() if name not in about}
    choices = rest["anyOf"] if rest.keys() == {"anyOf"} else [rest]
    return {**about, "anyOf": [*choices, {"type": "null"}]}
