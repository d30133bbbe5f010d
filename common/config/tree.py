"""Makes a raw YAML tree fit the schema's types: key spelling, unknown keys, wrong types.

`conform` never stops at the first problem. What does not fit is reported and left out of the tree that it
returns, so that the rest can be checked as well.
"""

import dataclasses
import difflib
import functools
import math
import typing
from typing import Any, Final

from crescendo.common.config.problems import Problem

_ABSENT: Final = object()
_INTERPOLATION = "${"
_EXAMPLES: Final[dict[type, str]] = {int: "8", float: "0.5", bool: "true", str: '"text"'}
_NAMES: Final[dict[type, str]] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def camel_case(name: str) -> str:
    """The Kubernetes spelling of a field: max_response_tokens -> maxResponseTokens."""
    head, *tail = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in tail)


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """Names and resolved types of a config class's fields."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def field_name(kind: type, key: str) -> str | None:
    """The field that a key names in either spelling."""
    for name in field_types(kind):
        if key in (name, camel_case(name)):
            return name
    return None


def join(path: str, name: str) -> str:
    """`path.name`, or name at the top."""
    return f"{path}.{name}" if path else name


def conform(raw: object, kind: Any, path: str, problems: list[Problem]) -> Any:
    """The tree under `path` in the schema's spelling and types, less what does not fit."""
    fitted = _conform(raw, kind, path, problems)
    return {} if fitted is _ABSENT else fitted


def _conform(raw: object, kind: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(raw, str) and _INTERPOLATION in raw:
        return raw
    if dataclasses.is_dataclass(kind):
        return _conform_section(raw, typing.cast(type, kind), path, problems)
    origin = typing.get_origin(kind)
    if origin is list:
        return _conform_list(raw, typing.get_args(kind)[0], path, problems)
    if origin is dict:
        return _conform_dict(raw, typing.get_args(kind)[1], path, problems)
    return _conform_leaf(raw, kind, path, problems)


def _conform_section(raw: object, kind: type, path: str, problems: list[Problem]) -> Any:
    if not isinstance(raw, dict):
        names = ", ".join(list(field_types(kind))[:4])
        problems.append(
            _wrong_type(path or "the file", raw, "a mapping", f"Write it as keys and values ({names}, ...).")
        )
        return _ABSENT
    types = field_types(kind)
    fitted: dict[str, Any] = {}
    for key, value in raw.items():
        name = field_name(kind, str(key))
        if name is None:
            problems.append(_unknown_key(str(key), kind, path))
        elif name in fitted:
            problems.append(
                Problem(
                    join(path, name),
                    f"{join(path, name)} is given twice, as {name} and {camel_case(name)}; one is allowed.",
                    "Remove one of them.",
                )
            )
        else:
            value = _conform(value, types[name], join(path, name), problems)
            if value is not _ABSENT:
                fitted[name] = value
    return fitted


def _conform_list(raw: object, item: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(raw, list):
        problems.append(_wrong_type(path, raw, "a list", "Start each item with a dash."))
        return _ABSENT
    fitted = []
    for index, value in enumerate(raw):
        one = _conform(value, item, f"{path}[{index}]", problems)
        # An item that does not fit keeps its place, so that the paths of its neighbours stay right.
        fitted.append({} if one is _ABSENT else one)
    return fitted


def _conform_dict(raw: object, item: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(raw, dict):
        problems.append(_wrong_type(path, raw, "a mapping", "Write it as keys and values."))
        return _ABSENT
    fitted = {}
    for key, value in raw.items():
        if item is str and isinstance(value, int | float):
            value = str(value).lower() if isinstance(value, bool) else str(value)
        one = _conform(value, item, join(path, str(key)), problems)
        if one is not _ABSENT:
            fitted[str(key)] = one
    return fitted


def _conform_leaf(raw: object, kind: type, path: str, problems: list[Problem]) -> Any:
    fits = isinstance(raw, kind) and (kind is bool or not isinstance(raw, bool))
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        fits = True
    if not fits:
        example = f'"{raw}"' if kind is str and isinstance(raw, int | float) else _EXAMPLES[kind]
        problems.append(_wrong_type(path, raw, _NAMES[kind], f"Write for example {path.split('.')[-1]}: {example}"))
        return _ABSENT
    if kind is float and not math.isfinite(typing.cast(float, raw)):
        problems.append(Problem(path, f"{path} is {raw}; it must be a finite number.", "Give a finite number."))
        return _ABSENT
    return raw


def _wrong_type(path: str, raw: object, wanted: str, fix: str) -> Problem:
    shown = "empty" if raw is None else f"{shorten(raw)} ({type(raw).__name__})"
    return Problem(path, f"{path} is {shown}; it must be {wanted}.", fix)


def _unknown_key(key: str, kind: type, path: str) -> Problem:
    names = list(field_types(kind))
    near = difflib.get_close_matches(key.lower(), names, n=2, cutoff=0.6)
    where = f"in {path}" if path else "at the top"
    listed = ", ".join(names)
    fix = f"Did you mean {' or '.join(near)}?" if near else f"Known keys {where}: {listed}."
    related = tuple(join(path, name) for name in near)
    return Problem(join(path, key), f"{join(path, key)} is not a key that exists {where}.", fix, related)


def shorten(value: object, limit: int = 60) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
