"""The config schema as a structural OpenAPI v3 schema, as Kubernetes wants it in a CustomResourceDefinition.

`schema_of` walks the same dataclasses that docs.py and check.py read: types, defaults, bounds, units, sources and the
CEL rules of cel.py. Keys are camelCase. Every list, map and text has a largest size, because the API server bounds
the cost of a CEL rule by them.
"""

import dataclasses
import functools
import re
import typing
from collections.abc import Set
from typing import Any, Final

from crescendo.common.config.cel import RULES
from crescendo.common.config.fields import Rule
from crescendo.common.config.schema import Config
from crescendo.common.config.tree import camel_case, field_types, join

MAX_ITEMS: Final = 16
MAX_PROPERTIES: Final = 64
MAX_LENGTH: Final = 4096
_WORD: Final = re.compile(r"\w+")
_PLAIN: Final = re.compile(r"(?:a|[a-z]{2,})(?![\w:])")  # a word, and no value or symbol
Schema = dict[str, Any]


def schema_of(kind: type, *, leave_out: Set[str] = frozenset(), path: str = "") -> Schema:
    """The schema of a config class. leave_out: dotted paths of fields that somebody else sets."""
    types = field_types(kind)
    properties: Schema = {}
    required = []
    for field in dataclasses.fields(kind):
        at = join(path, field.name)
        if at in leave_out:
            continue
        rule: Rule = field.metadata["rule"]
        properties[camel_case(field.name)] = _field(field, types[field.name], rule, leave_out, at)
        if _is_required(field, rule):
            required.append(camel_case(field.name))
    schema: Schema = {"type": "object", "description": " ".join((kind.__doc__ or "").split()), "properties": properties}
    if required:
        schema["required"] = required
    rules = [rule.to_dict() for rule in RULES.get(kind, ())]
    if rules:
        schema["x-kubernetes-validations"] = rules
    return schema


def describe(rule: Rule) -> str:
    """A field's documentation as `kubectl explain` shows it: its fields are spelt as there, its values are not."""
    text = _WORD.sub(lambda word: camel_case(word[0]) if word[0] in _field_names() else word[0], rule.doc)
    if _PLAIN.match(text):
        text = text[:1].upper() + text[1:]
    unit = f" Unit: {rule.unit}." if rule.unit else ""
    source = f" Source: {rule.source}." if rule.source else ""
    return f"{text}.{unit}{source}"


@functools.cache
def _field_names() -> frozenset[str]:
    """Names of two words and more that are fields of a run file and never values."""
    names: set[str] = set()
    values: set[str] = set()

    def walk(kind: Any) -> None:
        for inner in typing.get_args(kind):
            walk(inner)
        if not dataclasses.is_dataclass(kind):
            return
        types = field_types(typing.cast(type, kind))
        for field in dataclasses.fields(kind):
            names.add(field.name)
            values.update(field.metadata["rule"].choices)
            walk(types[field.name])

    walk(Config)
    return frozenset(name for name in names - values if "_" in name)


def _is_required(field: "dataclasses.Field[Any]", rule: Rule) -> bool:
    return field.default == "" and bool(rule.pattern)


def _field(field: "dataclasses.Field[Any]", kind: Any, rule: Rule, leave_out: Set[str], path: str) -> Schema:
    schema = _type(kind, leave_out, path)
    own = schema.pop("description", "")
    schema["description"] = describe(rule) if not own else f"{describe(rule)} {own}"
    _bound(schema, rule)
    if _is_required(field, rule):
        return schema
    if field.default is not dataclasses.MISSING:
        schema["default"] = field.default
    elif "required" not in schema:
        schema["default"] = [] if schema["type"] == "array" else _defaults(schema)
    return schema


def _defaults(schema: Schema) -> Schema:
    """A section's default written out: the API server checks it against the section's CEL rules as it stands."""
    children = schema.get("properties", {}).items()
    return {name: child["default"] for name, child in children if "default" in child}


def _type(kind: Any, leave_out: Set[str], path: str) -> Schema:
    if dataclasses.is_dataclass(kind):
        return schema_of(typing.cast(type, kind), leave_out=leave_out, path=path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return {"type": "array", "maxItems": MAX_ITEMS, "items": _type(arguments[0], leave_out, path)}
    if origin is dict:
        return {
            "type": "object",
            "maxProperties": MAX_PROPERTIES,
            "additionalProperties": _type(arguments[1], leave_out, path),
        }
    scalars: dict[type, Schema] = {
        bool: {"type": "boolean"},
        int: {"type": "integer", "format": "int64"},
        float: {"type": "number"},
        str: {"type": "string", "maxLength": MAX_LENGTH},
    }
    return dict(scalars[kind])


def _bound(schema: Schema, rule: Rule) -> None:
    if rule.choices:
        schema["enum"] = list(rule.choices)
    if rule.pattern:
        schema["pattern"] = f"^({rule.pattern})$"
    if rule.at_least is not None:
        schema["minimum"] = rule.at_least
    if rule.above is not None:
        schema["minimum"], schema["exclusiveMinimum"] = rule.above, True
    if rule.at_most is not None:
        schema["maximum"] = rule.at_most
