"""Finds the answer in a response. Linear in the response's length: no backtracking expressions on model text."""

import re

_BOX = "\\boxed"
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?")


def last_boxed(text: str) -> str | None:
    """Content of the last \\boxed{...} whose braces close; None if there is none."""
    end = len(text)
    while (start := text.rfind(_BOX, 0, end)) >= 0:
        content = _braced(text, start + len(_BOX), end)
        if content is not None:
            return content
        # Looking no further than this box keeps the whole search linear.
        end = start
    return None


def _braced(text: str, at: int, end: int) -> str | None:
    while at < end and text[at] == " ":
        at += 1
    if at >= end or text[at] != "{":
        return None
    depth = 0
    for found in _BRACES.finditer(text, at, end):
        mark = found.group()
        if mark == "{":
            depth += 1
        elif mark == "}":
            depth -= 1
            if depth == 0:
                return text[at + 1 : found.start()]
    return None


def last_tagged(text: str, tag: str) -> str | None:
    """Content of the last <tag>...</tag>; None if there is none."""
    close = text.rfind(f"</{tag}>")
    if close < 0:
        return None
    opening = f"<{tag}>"
    start = text.rfind(opening, 0, close)
    return None if start < 0 else text[start + len(opening) : close]


def last_number(text: str) -> str | None:
    """The last whole number, decimal or fraction of whole numbers, without thousands separators."""
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return None if last is None else last.group().replace(",", "")


def after_last(text: str, marker: str) -> str | None:
    """What follows the last marker; the whole text if the marker is empty; None if it is not there."""
    if not marker:
        return text
    at = text.rfind(marker)
    return None if at < 0 else text[at + len(marker) :]
