"""A validator's complaint in the words of who wrote the config: what was found and what was expected.

Knows nothing of files or lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

KeyPath = tuple[str | int, ...]

_KINDS = {
    "string_type": "text",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}


def complaint(error: Mapping[str, Any], schema: Mapping[str, Any], data: object, path: KeyPath) -> tuple[str, str]:
    """Return found and expected of one of pydantic's errors.

    Args:
        error: as `ValidationError.errors()` gives it.
        schema: JSON Schema of what was validated.
        data: what was validated.
        path: where in the data it is wrong.
    """
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    shown = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {_kind_of(value)}"
    if kind == "missing":
        return "nothing", "this key"
    if kind == "extra_forbidden":
        known = sorted(_node_at(schema, data, path[:-1]).get("properties", ()))
        close = get_close_matches(str(path[-1]), known, 1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        return "an unknown key", f"one of {', '.join(known)}{meant}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(context["discriminator"]).strip("'")
        given = repr(context["tag"]) if "tag" in context else "none"
        return f"{tag} {given}", f"{tag} {' or '.join(map(repr, _tags_at(schema, data, path)))}"
    wanted = _KINDS.get(kind)
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"{shown} of {len(value)}", f"{bound} in it"
    if wanted is None:
        return shown, str(error["msg"]).removeprefix("Input should be ")
    return shown, wanted + _hint(kind, value)


def path_of(error: Mapping[str, Any], data: object) -> KeyPath:
    """Return where in the data an error is: its location without the tags of unions, which are no keys."""
    path: KeyPath = ()
    node: Any = data
    tagged = False
    for index, part in enumerate(error["loc"]):
        if isinstance(node, Mapping) and not tagged and part in (node.get("formula"), node.get("type")):
            tagged = True
        elif (isinstance(node, Mapping) and part in node) or (
            isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)
        ):
            node, tagged, path = node[part], False, (*path, part)
        elif index == len(error["loc"]) - 1 and error["type"] == "missing":
            path = (*path, part)
    return path


def _hint(kind: str, value: object) -> str:
    """Return what YAML may have made of something that was meant otherwise."""
    if isinstance(value, bool):
        return " (YAML reads on/off/yes/no as true/false: quote text)"
    if kind == "string_type" and isinstance(value, int | float):
        return f" (quote it: '{value}')"
    if kind == "float_type" and isinstance(value, str) and _is_number(value):
        plain = repr(float(value))
        return f" (that is text to YAML: write {plain if '.' in plain else plain.replace('e', '.0e')})"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _kind_of(value: object) -> str:
    return {"dict": "mapping", "tuple": "list"}.get(type(value).__name__, type(value).__name__)


def _node_at(schema: Mapping[str, Any], data: object, path: KeyPath) -> Mapping[str, Any]:
    """Return the schema of what stands at the path."""
    node = _resolved(schema, schema, data)
    value: Any = data
    for part in path:
        value = value[part]
        inside = node.get("properties", {}).get(part) or node.get("items") or node.get("additionalProperties")
        if inside is None:
            inside = next(iter(node.get("patternProperties", {}).values()), {})
        node = _resolved(schema, inside, value)
    return node


def _resolved(schema: Mapping[str, Any], node: Any, value: Any) -> Mapping[str, Any]:
    """Return the schema that a reference, or the choice that the value makes, leads to."""
    while isinstance(node, Mapping):
        tag = node.get("discriminator", {}).get("propertyName")
        mapping = node.get("discriminator", {}).get("mapping", {})
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif isinstance(value, Mapping) and value.get(tag) in mapping:
            node = {"$ref": mapping[value[tag]]}
        elif "anyOf" in node:
            node = next((option for option in node["anyOf"] if option.get("type") != "null"), {})
        else:
            return node
    return {}


def _tags_at(schema: Mapping[str, Any], data: object, path: KeyPath) -> list[str]:
    return list(_node_at(schema, data, path).get("discriminator", {}).get("mapping", {}))
