"""Options arrive as text (`map<string, string>`); here they become a typed, checked dataclass.

An options class is a frozen dataclass whose fields are str, int, float or bool, each made with `option`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from crescendo.common.config.fields import Rule
from crescendo.common.config.option_text import OptionTextError, broken_rule, convert
from crescendo.common.errors import CrescendoError, RequestError

OptionsT = TypeVar("OptionsT")


def option(default: Any, doc: str, *, filled_from: str = "", not_above: str = "", **bounds: Any) -> Any:
    """A dataclass field with its documentation and bounds (see common.config.fields.Rule).

    A default outside the bounds makes the option required. filled_from: what the controller gives where the
    run file is silent, such as `stage.max_response_tokens`; not_above: another option that this one may not
    exceed.
    """
    rule = Rule(doc, **bounds)
    return dataclasses.field(
        default=default, metadata={"rule": rule, "filled_from": filled_from, "not_above": not_above}
    )


def parse_options(
    kind: type[OptionsT],
    given: Mapping[str, str],
    owner: str,
    error: type[CrescendoError] = RequestError,
) -> OptionsT:
    """An instance of `kind` from text; `owner` names the scorer or service in messages.

    Raises `error` (RequestError) naming the option that is unknown, missing, of the wrong type or out of bounds.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise error(f"{owner} has no option {name!r}.", field=name, fix=f"Its options are: {known}.")
    values = {
        name: _value(field, given[name], owner, error) if name in given else _default(field, owner, error)
        for name, field in fields.items()
    }
    for name, field in fields.items():
        limit = field.metadata.get("not_above")
        if limit and values[name] > values[limit]:
            raise error(
                f"{owner}.{name} is {values[name]}; it must be at most {owner}.{limit}, {values[limit]}.", field=name
            )
    return kind(**values)


def kind_name(field: "dataclasses.Field[Any]") -> str:
    """str, int, float or bool."""
    return field.type if isinstance(field.type, str) else field.type.__name__


def _value(field: "dataclasses.Field[Any]", text: str, owner: str, error: type[CrescendoError]) -> Any:
    name = f"{owner}.{field.name}"
    try:
        value = convert(kind_name(field), text)
    except OptionTextError as wrong:
        raise error(f"{name} is {text!r}; {wrong}.", field=name) from None
    broken = broken_rule(field.metadata.get("rule"), value)
    if broken:
        raise error(f"{name} is {value!r}; {broken}.", field=name)
    return value


def _default(field: "dataclasses.Field[Any]", owner: str, error: type[CrescendoError]) -> Any:
    if field.default is dataclasses.MISSING:
        return field.default_factory() if field.default_factory is not dataclasses.MISSING else None
    broken = broken_rule(field.metadata.get("rule"), field.default)
    if broken:
        name = f"{owner}.{field.name}"
        raise error(f"{name} is not set; {broken}.", field=name, fix=f"Give the option {field.name}.")
    return field.default
