"""Reads JSON out of a response: bounded in size and depth, and never evaluated.

Called by scorers in confined workers only.
"""

import ast
import json
from typing import Any

from crescendo.reward_service.scorers.extract import last_tagged

MAX_CHARACTERS = 1 << 18
MAX_DEPTH = 64
_FENCE = "```"


class NotReadableError(ValueError):
    """There is no such JSON in the text; str(error) says why."""


def answer_part(text: str, tag: str) -> str:
    """Where an answer stands: in the last tag, else in the last fenced block, else everywhere; fences taken off."""
    inside = last_tagged(text, tag) if tag else None
    part = text if inside is None else inside
    end = part.rfind(_FENCE)
    start = part.rfind(_FENCE, 0, end) if end > 0 else -1
    if start < 0:
        return part.strip()
    block = part[start + len(_FENCE) : end]
    language, newline, rest = block.partition("\n")
    return (rest if newline and language.strip().isalnum() else block.removeprefix("json")).strip()


def read_json(text: str, *, python_literals: bool = False) -> Any:
    """The JSON value that the whole text is; raises NotReadableError.

    NaN and infinities are refused: they are not JSON, and compare false with everything. python_literals: also
    accept single-quoted literals, as models write them after Visual-RFT's prompt; they build values, and run nothing.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotReadableError(f"{len(text)} characters; at most {MAX_CHARACTERS}")
    if nesting(text) > MAX_DEPTH:
        raise NotReadableError(f"nested deeper than {MAX_DEPTH}")
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        if not python_literals:
            raise NotReadableError(f"not JSON: {error}") from None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise NotReadableError(f"neither JSON nor a plain literal: {type(error).__name__}") from None


def nesting(text: str) -> int:
    """Deepest nesting of brackets, as if none stood in a string: an upper bound of the value's."""
    depth = deepest = 0
    for character in text:
        if character in "[{(":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]})":
            depth -= 1
    return deepest


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number")
