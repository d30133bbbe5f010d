"""A run file in Kubernetes' spelling and back: camelCase for fields, people's own names left alone. Type-directed."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

from crescendo.common.config.schema import Config
from crescendo.common.config.tree import camel_case, field_name, field_types


def to_camel(raw: Any) -> Any:
    """A run mapping in either spelling, with camelCase keys. Unknown keys stay as they are."""
    return _respell(raw, Config, camel_case)


def to_snake(raw: Any) -> Any:
    """A run mapping in either spelling, with snake_case keys. Unknown keys stay as they are."""
    return _respell(raw, Config, lambda name: name)


def _respell(value: Any, kind: Any, spell: Callable[[str], str]) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, dict) and dataclasses.is_dataclass(kind):
        section = typing.cast(type, kind)
        types = field_types(section)
        respelled = {}
        for key, child in value.items():
            name = field_name(section, str(key))
            respelled[spell(name) if name else key] = _respell(child, types[name] if name else None, spell)
        return respelled
    if isinstance(value, list) and origin is list:
        return [_respell(child, arguments[0], spell) for child in value]
    if isinstance(value, dict) and origin is dict:
        return {key: _respell(child, arguments[1], spell) for key, child in value.items()}
    return value
