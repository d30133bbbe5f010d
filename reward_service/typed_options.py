"""Options arrive as text (`map<string, string>`); here they become a typed, checked dataclass.

An options class is a frozen dataclass whose fields are str, int, float or bool, each made with `option`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from crescendo.common.config.fields import Rule
from crescendo.common.errors import CrescendoError, RequestError

OptionsT = TypeVar("OptionsT")

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def option(default: Any, doc: str, **bounds: Any) -> Any:
    """A dataclass field with its documentation and bounds (see common.config.fields.Rule)."""
    return dataclasses.field(default=default, metadata={"rule": Rule(doc, **bounds)})


def parse_options(
    kind: type[OptionsT],
    given: Mapping[str, str],
    owner: str,
    error: type[CrescendoError] = RequestError,
) -> OptionsT:
    """An instance of `kind` from text; `owner` names the scorer or service in messages.

    Raises `error` (RequestError) naming the option that is unknown, of the wrong type or out of bounds.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, text in given.items():
        field = fields.get(name)
        if field is None:
            known = ", ".join(sorted(fields)) or "none"
            raise error(f"{owner} has no option {name!r}.", field=name, fix=f"Its options are: {known}.")
        values[name] = _convert(field.type, text, f"{owner}.{name}", error)
        _check(field.metadata.get("rule"), values[name], f"{owner}.{name}", error)
    return kind(**values)


def _convert(kind: Any, text: str, name: str, error: type[CrescendoError]) -> Any:
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise error(f"{name} is {text!r}; it must be true or false.", field=name)
        return _BOOLEANS[text.lower()]
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise error(f"{name} is {text!r}; it must be {wanted}.", field=name) from None


def _check(rule: Rule | None, value: Any, name: str, error: type[CrescendoError]) -> None:
    if rule is None:
        return
    if rule.choices and value not in rule.choices:
        raise error(f"{name} is {value!r}; it must be one of {', '.join(rule.choices)}.", field=name)
    if rule.pattern and not re.fullmatch(rule.pattern, str(value)):
        raise error(f"{name} is {value!r}; it must match {rule.pattern}.", field=name)
    # Written so that NaN, which compares false with everything, breaks each bound.
    if rule.at_least is not None and not value >= rule.at_least:
        raise error(f"{name} is {value}; it must be at least {rule.at_least}.", field=name)
    if rule.above is not None and not value > rule.above:
        raise error(f"{name} is {value}; it must be above {rule.above}.", field=name)
    if rule.at_most is not None and not value <= rule.at_most:
        raise error(f"{name} is {value}; it must be at most {rule.at_most}.", field=name)
