"""Takes code, mathematics and addresses out of a text, leaving prose. Linear in the text's length.

Each pair of marks is searched for once from where it opens; a mark that never closes is remembered, so that a text
of openings costs no more than any other.
"""

import re

MAX_INLINE = 500

# Opening mark to closing mark. Longer marks first: ``` before `, $$ before $.
_BLOCKS: tuple[tuple[str, str], ...] = (
    ("```", "```"),
    ("~~~", "~~~"),
    ("$$", "$$"),
    ("\\[", "\\]"),
    ("\\(", "\\)"),
)
_OPENING = re.compile(r"```|~~~|\$\$|\\\[|\\\(|\$|`")
_COMMAND = re.compile(r"\\(?:begin|end)\{[A-Za-z*]{1,20}\}|\\[A-Za-z]{1,30}")
_TAG = re.compile(r"</?[A-Za-z_][A-Za-z_0-9-]{0,30}>")
_ADDRESS = re.compile(r"https?://\S{1,2000}")


def prose_of(text: str) -> str:
    """The text with fenced and inline code, LaTeX, tags and addresses replaced by spaces."""
    kept: list[str] = []
    unclosed: set[str] = set()
    at = 0
    while (found := _OPENING.search(text, at)) is not None:
        mark = found.group()
        end = _end_of(text, mark, found.end(), unclosed)
        kept.append(text[at : found.start()])
        kept.append(" ")
        at = found.end() if end is None else end
    kept.append(text[at:])
    joined = "".join(kept)
    for expression in (_ADDRESS, _COMMAND, _TAG):
        joined = expression.sub(" ", joined)
    return joined


def _end_of(text: str, mark: str, start: int, unclosed: set[str]) -> int | None:
    """Where the block that opened ends, after its closing mark; None if it does not close."""
    for opening, closing in _BLOCKS:
        if mark == opening:
            if mark in unclosed:
                return None
            end = text.find(closing, start)
            if end < 0:
                unclosed.add(mark)
                return None
            return end + len(closing)
    return _inline_end(text, mark, start)


def _inline_end(text: str, mark: str, start: int) -> int | None:
    """Inline marks close in the same line. As Pandoc reads `$`: no space inside the marks, no digit after them."""
    limit = min(len(text), start + MAX_INLINE)
    line_end = text.find("\n", start, limit)
    limit = limit if line_end < 0 else line_end
    if mark == "$" and text[start : start + 1].isspace():
        return None
    end = text.find(mark, start, limit)
    while mark == "$" and end >= 0 and (text[end - 1].isspace() or text[end + 1 : end + 2].isdigit()):
        end = text.find(mark, end + 1, limit)
    return None if end < 0 else end + 1
