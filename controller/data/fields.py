"""Reading our fields (question, answer, ...) from a row's columns. A row that can't be read raises BadRow."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from crescendo.common.config.schema import DataSourceConfig

# "Level 4", "grade 7.5": data sets that name a difficulty write a word before the number.
_DIFFICULTY = re.compile(r"[A-Za-z ]{0,20}?(-?\d+(?:\.\d+)?)")


class BadRow(Exception):
    """A row that is set aside; the text is the reason."""


class Columns:
    """Which column holds which field."""

    def __init__(self, config: DataSourceConfig, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        """Required fields are read from the column of the same name unless mapped; optional ones only if mapped.

        A task's rows have our names, so all of its fields are there.
        """
        names = required + optional if config.name == "task" else required
        self._columns = {name: name for name in names} | dict(config.columns)
        self._metadata = dict(config.metadata)
        self._required = required

    @property
    def needed(self) -> tuple[str, ...]:
        """The data set's columns that will be read."""
        return tuple(dict.fromkeys([*self._columns.values(), *self._metadata.values()]))

    def get(self, values: Mapping[str, Any], name: str) -> Any:
        """The raw value of a field; None where it is not mapped or missing."""
        column = self._columns.get(name)
        return None if column is None else values.get(column)

    def metadata(self, values: Mapping[str, Any]) -> dict[str, str]:
        """What scorers read besides the answer: text as it stands, anything else as JSON; nothing for an empty cell."""
        found = {name: values.get(column) for name, column in self._metadata.items()}
        return {name: _as_text(value, name) for name, value in found.items() if value is not None}

    def text(self, values: Mapping[str, Any], name: str) -> str:
        """A field that must be a non-empty string of valid Unicode, as it stands."""
        column = self._columns[name]
        if column not in values or values[column] is None:
            raise BadRow(f"{name} is missing (column {column!r})")
        return checked_text(values[column], name)


def _as_text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return checked_text(value, name)
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadRow(f"{name} cannot be written as JSON: {error}") from error


def checked_text(value: Any, name: str) -> str:
    """The value if it is a non-empty string of valid Unicode."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is a {type(value).__name__}, not a string")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} is not valid Unicode") from error
    return value


def gold_answers(value: Any, marker: str) -> list[str]:
    """The gold answers: a string, a whole number, or a list of these; each what follows the last marker.

    Whole numbers are taken as their decimal digits, because data sets often keep answers in a number column; other
    numbers have no text of their own (is it 0.5 or 1/2?) and are refused.
    """
    values = value if isinstance(value, list) else [value]
    if not values:
        raise BadRow("answer is empty")
    return [_gold_answer(item, marker) for item in values]


def _gold_answer(value: Any, marker: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = checked_text(value, "answer")
    if marker:
        _, found, text = text.rpartition(marker)
        if not found:
            raise BadRow(f"answer has no marker {marker!r}")
    if not text.strip():
        raise BadRow(f"answer is empty after {marker!r}")
    return text.strip()


def difficulty(value: Any) -> float | None:
    """A number, or a text such as `Level 4`; None stays None."""
    if value is None:
        return None
    if isinstance(value, str):
        found = _DIFFICULTY.fullmatch(value.strip())
        value = float(found.group(1)) if found else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow("difficulty is not a number")
    return float(value)


def identity(value: Any, question: str, golds: list[str]) -> str:
    """The given id, else a hash of question and answers: the same row has the same id in every run."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None:
        return checked_text(value, "id").strip()
    return "h-" + hashlib.sha256("\0".join([question, *golds]).encode()).hexdigest()[:24]


def fingerprint(question: str) -> str:
    """Equal for questions that differ in white space only; tells held-out questions from training questions."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:32]
