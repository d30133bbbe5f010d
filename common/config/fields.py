"""How a config field is declared: one call that carries the default, the documentation and the bounds.

The generated documents (docs/configuration.md; later the RLJob's CRD and the chart's values schema) and the
checks read the same metadata, so a bound is written once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What a field's value must satisfy; bounds are inclusive unless `above` is used."""

    doc: str
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    source: str = ""


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    source: str = "",
) -> Any:
    """A dataclass field with its documentation and bounds; a callable default is a factory."""
    rule = Rule(doc, unit, at_least, above, at_most, choices, pattern, source)
    metadata = {"rule": rule}
    if isinstance(default, Callable):  # type: ignore[arg-type]
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)
