"""math_answer: the response's final answer equals a gold answer as mathematics, by math-verify.

Settings as math-verify recommends for rewards (its README): basic LaTeX and units are normalized, malformed
operators and nits are not, every box counts, equations stay equations. verify(gold, prediction) is asymmetric on
purpose, so the order matters. Its own time-outs work by SIGALRM and are off: the worker pool kills.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, judged, unparsable, unsupported
from crescendo.reward_service.scorers.extract import after_last, last_boxed, last_number, last_tagged
from crescendo.reward_service.typed_options import option

# A dollar sign behind a backslash is money, not the start of a formula.
_DELIMITER = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")
MAX_SHOWN = 80


@dataclass(frozen=True)
class MathOptions:
    """Options of math_answer."""

    extract: str = option(
        "any",
        "where the answer is; any: the last box, else the last tag, else what math-verify finds",
        choices=("boxed", "tagged", "last_number", "any"),
    )
    tag: str = option("answer", "tag that tagged looks for", pattern=r"[A-Za-z_][\w-]*")
    after: str = option("", "read only what follows its last occurrence, such as </think>")


@lru_cache(maxsize=1)
def _targets() -> tuple[Any, ...]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    normalization = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=False, nits=False, boxed="all", equations=False
    )
    return (
        LatexExtractionConfig(normalization_config=normalization, boxed_match_priority=0),
        ExprExtractionConfig(),
    )


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text, _targets(), parsing_timeout=None))


def _delimited(text: str) -> str:
    return text if _DELIMITER.search(text) else f"\\boxed{{{text}}}"


@lru_cache(maxsize=4096)
def _parse_gold(text: str) -> tuple[Any, ...]:
    # The samples of one prompt share their gold answers.
    return tuple(_parse(_delimited(text.strip())))


def _answer_text(text: str, options: MathOptions) -> str | None:
    boxed = last_boxed(text) if options.extract in ("boxed", "any") else None
    if boxed is not None:
        return f"\\boxed{{{boxed}}}"
    if options.extract in ("tagged", "any"):
        tagged = last_tagged(text, options.tag)
        if tagged is not None:
            inner = last_boxed(tagged)
            return f"\\boxed{{{inner}}}" if inner is not None else _delimited(tagged.strip())
    if options.extract == "last_number":
        number = last_number(text)
        return None if number is None else _delimited(number)
    return text if options.extract == "any" else None


def score(sample: Sample, options: MathOptions) -> Outcome:
    """1 if any gold answer equals the response's, else 0; unparsable if no answer can be read from it."""
    from math_verify import verify

    golds = [gold for text in sample.gold_answers if (gold := _parse_gold(text))]
    if not golds:
        return unsupported("no gold answer can be read as mathematics")
    text = after_last(sample.text, options.after)
    answer = None if text is None else _answer_text(text, options)
    if answer is None:
        return unparsable(f"no answer found by {options.extract!r}")
    predicted = _parse(answer)
    if not predicted:
        return unparsable("the answer cannot be read as mathematics")
    shown = str(predicted[-1])[:MAX_SHOWN] if isinstance(predicted[-1], str) else ""
    for gold in golds:
        if verify(list(gold), predicted, timeout_seconds=None):
            return judged(True, f"answer {shown!r}")
    if all(isinstance(found, str) for found in predicted):
        return unparsable(f"{shown!r} cannot be read as mathematics")
    return judged(False, f"answer {shown!r}")


SCORER = Scorer(
    name="math_answer",
    source="math-verify's settings for rewards; the accuracy reward of R1-Zero (2.2.2) and k1.5 (2.3.5)",
    low=0.0,
    high=1.0,
    options=MathOptions,
    score=score,
    preload=("math_verify", "latex2sympy2_extended"),
)
