"""Options that arrive as text (`map<string, string>`): their types and bounds, read in one place.

Used by the checks of a run file, before anything starts, and by the reward service, which trusts no caller.
"""

import re
from typing import Any

from crescendo.common.config.fields import Rule

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class OptionTextError(ValueError):
    """The text is not a value of the option's type; str(error) is the rule that it breaks."""


def convert(kind: str, text: str) -> Any:
    """The value of a text; kind: str, int, float or bool. Raises OptionTextError."""
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() not in _BOOLEANS:
            raise OptionTextError("it must be true or false")
        return _BOOLEANS[text.lower()]
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        raise OptionTextError(f"it must be {'a whole number' if kind == 'int' else 'a number'}") from None


def broken_rule(rule: Rule | None, value: Any) -> str:
    """The rule that a value breaks, as in `it must be at least 1`; empty if it breaks none."""
    if rule is None:
        return ""
    if rule.choices and value not in rule.choices:
        return f"it must be one of {', '.join(rule.choices)}"
    if rule.pattern and not re.fullmatch(rule.pattern, str(value)):
        return f"it must match {rule.pattern}"
    # Written so that NaN, which compares false with everything, breaks each bound.
    if rule.at_least is not None and not value >= rule.at_least:
        return f"it must be at least {rule.at_least:g}"
    if rule.above is not None and not value > rule.above:
        return f"it must be above {rule.above:g}"
    if rule.at_most is not None and not value <= rule.at_most:
        return f"it must be at most {rule.at_most:g}"
    return ""
