"""Finds the program in a response: the last fenced block of a language. Linear; runs in a confined worker."""

LANGUAGES: dict[str, frozenset[str]] = {"python": frozenset({"", "python", "python3", "py"})}
_FENCE = "```"
MAX_INDENT = 3


def last_code_block(text: str, language: str = "python") -> str | None:
    """Content of the last closed ``` block whose tag is the language's or empty; None if there is none.

    As CommonMark has it: a fence is at least three back-ticks, indented by at most three spaces, and closes with at
    least as many and nothing else on the line. A block that is not closed was cut off, and is no answer.
    """
    tags = LANGUAGES[language]
    found: str | None = None
    opening: str | None = None
    tag = ""
    block: list[str] = []
    for line in text.split("\n"):
        marks, rest = _fence(line)
        if opening is None:
            # A back-tick in the tag makes it inline code.
            if marks and _FENCE[0] not in rest:
                opening, tag, block = marks, rest.strip().lower(), []
        elif len(marks) >= len(opening) and not rest.strip():
            if tag in tags:
                found = "\n".join(block)
            opening = None
        else:
            block.append(line)
    return found


def _fence(line: str) -> tuple[str, str]:
    """The line's fence and what follows it; an empty fence if it has none."""
    indented = line.lstrip(" ")
    rest = indented.lstrip(_FENCE[0])
    marks = indented[: len(indented) - len(rest)]
    is_fence = len(marks) >= len(_FENCE) and len(line) - len(indented) <= MAX_INDENT
    return (marks, rest) if is_fence else ("", line)
