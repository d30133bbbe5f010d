"""multiple_choice: the chosen letter is the gold letter, or the chosen text is the gold text.

The letter is read from the last box, else the last tag, else what follows the last "answer is" or "answer:". A lone
letter anywhere else is no answer: `A` is an article and `I` a pronoun. Naming several letters is wrong, never a pick.
"""

import json
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, judged, unparsable, unsupported
from crescendo.reward_service.scorers.extract import last_boxed, last_tagged
from crescendo.reward_service.typed_options import option

MAX_ANSWER = 2000
_PHRASE = re.compile(r"answer(?:\s+is|\s*:)", re.IGNORECASE)
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit|boxed)\b|[{}$*_`]")
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-Z])(?=[\s).:,;\]]|$)")


@dataclass(frozen=True)
class ChoiceOptions:
    """Options of multiple_choice."""

    extract: str = option(
        "any",
        "where the answer is; any: the last box, else the last tag, else what follows `answer is` or `answer:`",
        choices=("boxed", "tagged", "phrase", "any"),
    )
    tag: str = option("answer", "tag that tagged looks for", pattern=r"[A-Za-z_][\w-]*")
    num_choices: int = option(
        10, "letters from A on that count, where metadata.choices (a JSON list) is not given", at_least=2, at_most=26
    )


def score(sample: Sample, options: ChoiceOptions) -> Outcome:
    """1 if the letter, or the choice's text, is a gold one; unparsable if no answer is found."""
    choices = _choices(sample.metadata.get("choices", ""))
    letters = string.ascii_uppercase[: len(choices) or options.num_choices]
    golds = {letter for gold in sample.gold_answers if (letter := _one_letter(gold, letters, choices))}
    if not golds:
        return unsupported("no gold answer is a letter or the text of a choice")
    answer = _find(sample.text, options)
    if answer is None:
        return unparsable(f"no answer found by {options.extract!r}")
    named = _letters(answer[:MAX_ANSWER], letters, choices)
    if not named:
        return unparsable("the answer names no choice")
    if len(named) > 1:
        return judged(False, f"several choices are named: {', '.join(sorted(named))}")
    return judged(named <= golds, f"answer {named.pop()}")


def _choices(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    is_list = isinstance(found, list) and 2 <= len(found) <= len(string.ascii_uppercase)
    return tuple(_plain(str(choice)) for choice in found) if is_list else ()


def _find(text: str, options: ChoiceOptions) -> str | None:
    if options.extract in ("boxed", "any") and (boxed := last_boxed(text)) is not None:
        return boxed
    if options.extract in ("tagged", "any") and (tagged := last_tagged(text, options.tag)) is not None:
        inner = last_boxed(tagged)
        return tagged if inner is None else inner
    if options.extract in ("phrase", "any"):
        last = None
        for last in _PHRASE.finditer(text):  # noqa: B007 - the last one is wanted
            pass
        if last is not None:
            line = text[last.end() : last.end() + MAX_ANSWER].strip().partition("\n")[0]
            return line.partition(". ")[0]
    return None


def _plain(text: str) -> str:
    return " ".join(_WRAPPER.sub(" ", text).casefold().split()).strip(".,;: ")


def _letters(answer: str, letters: str, choices: Sequence[str]) -> set[str]:
    plain = _plain(answer)
    if plain and plain in choices:
        return {letters[choices.index(plain)]}
    bare = _WRAPPER.sub(" ", answer).strip()
    found = {letter for letter in _LETTER.findall(bare) if letter in letters}
    if found:
        leading = _LETTER.match(bare)
        rest = bare[leading.end() :].lstrip(").:, ") if leading else ""
        # "B. a cat": what follows the letter is that choice's own text, in which letters are words.
        if leading and leading[1] in letters and choices and _plain(rest) == choices[letters.index(leading[1])]:
            return {leading[1]}
        return found
    return {bare.upper()} if len(bare) == 1 and bare.upper() in letters else set()


def _one_letter(gold: str, letters: str, choices: Sequence[str]) -> str:
    named = _letters(gold, letters, choices)
    return named.pop() if len(named) == 1 else ""


SCORER = Scorer(
    name="multiple_choice",
    source="letter match, as evaluations of MMLU and GPQA do; hedging over several letters is wrong",
    low=0.0,
    high=1.0,
    options=ChoiceOptions,
    score=score,
)
