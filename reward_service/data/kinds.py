"""Kinds of question that k1.5 leaves out because a verifier cannot tell reasoning from luck, or cannot judge at all.

Multiple choice, true or false, and proofs (k1.5, section 2.1); answers that DeepScaleR's graders cannot compare
(its data pipeline, step 3). What a question is, is read from its words: there are misses, and a report shows what
went, so that a rule that fits a data set badly is seen.
"""

import re
from collections.abc import Iterable

from crescendo.reward_service.data.questions import MAX_CHARACTERS, Question, Refusal

_OPTIONS = "ABCDEFGH"
_MIN_OPTIONS = 3
_LONGEST_LABEL_LINE = 16
# (A), not as in P(A): a letter in parentheses that nothing is applied to.
_PARENTHESIZED = re.compile(r"(?<![A-Za-z0-9)\]}])\(([A-H])\)")
# \textbf{(A)}, \mathrm{(A) }, \text{A)}, as contests are typeset.
_TYPESET = re.compile(r"\\(?:textbf|mathbf|text|mathrm|bf|rm) ?\{? ?\(?([A-H])\)")
_LETTER_PARENTHESIS = re.compile(r"(?<!\S)([A-H])\)(?= |\$|\\)")
_LINE_LABEL = re.compile(r"[*_ ]{0,3}\(?([A-H])[).:][*_]{0,2}(?:\s|$)")
_CHOOSE = re.compile(r"\bwhich (?:one )?of the following\b|\b(?:choose|select) (?:the|one)\b|\boptions?\b", re.ASCII)
# As a question or an instruction; a "true or false test" may be what a word problem is about.
_TRUE_OR_FALSE = re.compile(
    r"(?:^|[.!?:(] ?)(?:true or false|true/false|yes or no)\b|\b(?:true or false|true/false|yes or no) ?[?:)]", re.ASCII
)
_ASKS_PROOF = re.compile(
    r"(?:^|[.!?:;,)$] ?|\b(?:and|then|please) )"
    r"(?:(?:prove|disprove) (?:that|the|or)|(?:show|verify|demonstrate) that)\b",
    re.ASCII,
)
_TRUTHS = frozenset({"true", "false", "yes", "no"})
_COMMAND = re.compile(r"\\[A-Za-z]+")
_CHAINED_EXPONENT = re.compile(r"\^[0-9]+\^|\^[0-9][0-9]+")


def kind_refused(question: Question) -> Refusal | None:
    """Multiple choice, true or false, or a proof; None for everything else."""
    text = _without_drawings(question.text[:MAX_CHARACTERS])
    plain = " ".join(text.lower().split())
    answers = [gold.strip().strip("$.()").strip() for gold in question.golds]
    is_letter = all(len(answer) == 1 and answer in _OPTIONS for answer in answers)
    if _lists_options(text) or (is_letter and _CHOOSE.search(plain)):
        return Refusal("multiple_choice", "the question lists options to choose from")
    if all(answer.lower() in _TRUTHS for answer in answers):
        return Refusal("true_false", f"the answer is {answers[0]!r}")
    if _TRUE_OR_FALSE.search(plain):
        return Refusal("true_false", "the question asks whether something is true")
    found = _ASKS_PROOF.search(plain)
    if found:
        return Refusal("proof", f"the question asks for a proof ({found.group().strip()!r})")
    if any("\\blacksquare" in gold or "q.e.d" in gold.lower() for gold in question.golds):
        return Refusal("proof", "the answer is a proof")
    return None


def answer_refused(gold: str) -> str:
    """Why DeepScaleR's graders would not compare this answer; empty if they would.

    At most two letters as unknowns (LaTeX commands do not count), no power with a braced or parenthesized
    exponent, no exponents in a chain.
    """
    letters = {character for character in _COMMAND.sub("", gold) if character.isalpha()}
    if len(letters) > 2:
        return f"answer has {len(letters)} letters; at most two unknowns can be compared"
    for mark in ("^{", "^("):
        if mark in gold:
            return f"answer holds {mark!r}"
    return "answer chains exponents" if _CHAINED_EXPONENT.search(gold) else ""


def _without_drawings(text: str) -> str:
    """The text without [asy] ... [/asy], programs that draw figures and are full of labels."""
    kept: list[str] = []
    for part in text.split("[asy]"):
        _, end, rest = part.partition("[/asy]")
        kept.append(rest if kept and end else part)
    return "".join(kept)


def _lists_options(text: str) -> bool:
    """Whether three or more labels A, B, C, ... follow each other in one of the ways that contests write them."""
    for pattern in (_PARENTHESIZED, _TYPESET, _LETTER_PARENTHESIS):
        if _count_in_order(found.group(1) for found in pattern.finditer(text)) >= _MIN_OPTIONS:
            return True
    lines = (_LINE_LABEL.match(line.lstrip()[:_LONGEST_LABEL_LINE]) for line in text.splitlines())
    return _count_in_order(found.group(1) for found in lines if found) >= _MIN_OPTIONS


def _count_in_order(labels: Iterable[str]) -> int:
    """The longest run A, B, C, ... in which each label follows the one before it; an A starts again."""
    longest = expected = 0
    for label in labels:
        if expected < len(_OPTIONS) and label == _OPTIONS[expected]:
            expected += 1
        elif label == _OPTIONS[0]:
            expected = 1
        longest = max(longest, expected)
    return longest
