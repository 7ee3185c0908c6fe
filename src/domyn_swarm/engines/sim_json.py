"""What the simulator answers when JSON of a certain shape is wanted."""

from __future__ import annotations

from typing import Any

_MOST_DEEP = 12  # a shape that contains itself ends somewhere


def instance_of(schema: dict[str, Any], text: str) -> Any:  # noqa: ANN401 - JSON
    """The least JSON that fits a schema; its strings are the text, the first of each choice counts.

    As much of JSON Schema as pydantic writes: types, enum, const, anyOf, allOf, $ref, bounds of
    numbers, items and required properties.
    """
    return _instance(schema, schema, text, 0)


def _instance(schema: Any, root: dict[str, Any], text: str, depth: int) -> Any:  # noqa: ANN401 - JSON
    if not isinstance(schema, dict) or depth > _MOST_DEEP:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if "$ref" in schema:
        return _instance(_referred(root, str(schema["$ref"])), root, text, depth + 1)
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return _instance(schema[name][0], root, text, depth + 1)
    return _of_type(schema, root, text, depth)


def _of_type(schema: dict[str, Any], root: dict[str, Any], text: str, depth: int) -> Any:  # noqa: ANN401 - JSON
    match schema.get("type"):
        case "string":
            return text[: schema.get("maxLength", len(text))]
        case "integer" | "number" as kind:
            least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            return least if kind == "integer" else float(least)
        case "boolean":
            return True
        case "array":
            wanted = schema.get("minItems", 1)
            return [_instance(schema.get("items"), root, text, depth + 1) for _ in range(wanted)]
        case "object":
            named = schema.get("properties", {})
            required = schema.get("required", list(named))
            return {one: _instance(named.get(one), root, text, depth + 1) for one in required}
    return None


def _referred(root: dict[str, Any], reference: str) -> Any:  # noqa: ANN401 - JSON
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found
