"""Which generated cases and problems are kept. Pure: k1.5, section 2.3.5, with its numbers as parameters.

A case is valid if enough reference solutions write the same; what they write is then its expected output. A problem is
kept if enough cases are valid and enough references pass all of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from crescendo.common.errors import RequestError


@dataclass(frozen=True)
class SelectionRules:
    """Defaults are k1.5's: 50 cases, 10 references, 7 that agree, 40 valid cases, 9 that pass."""

    num_cases: int = 50
    num_references: int = 10
    min_agree: int = 7
    min_valid: int = 40
    min_pass: int = 9

    def check(self) -> None:
        """Raises RequestError for numbers that no problem could meet, or every problem."""
        for name, value, most in (
            ("min_agree", self.min_agree, self.num_references),
            ("min_pass", self.min_pass, self.num_references),
            ("min_valid", self.min_valid, self.num_cases),
        ):
            if not 1 <= value <= most:
                raise RequestError(f"{name} is {value}; it must be from 1 to {most}.", field=name)
        if 2 * self.min_agree <= self.num_references:
            raise RequestError(
                f"min_agree is {self.min_agree} of {self.num_references} references; it must be more than half.",
                field="min_agree",
            )


@dataclass(frozen=True)
class Selection:
    """What became of a problem's cases. reason: why the problem goes; empty if it stays."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    num_passing: int = 0
    reason: str = ""
    dropped: Counter[str] = field(default_factory=Counter)


def select(inputs: Sequence[str], outputs: Sequence[Sequence[str | None]], rules: SelectionRules) -> Selection:
    """Chooses cases and decides about the problem. outputs: a case's by reference; None where the reference failed."""
    kept: list[int] = []
    agreed: list[str] = []
    dropped: Counter[str] = Counter()
    for case, written in enumerate(outputs):
        output, reason = _agreed(written, rules.min_agree)
        if output is None:
            dropped[reason] += 1
        else:
            kept.append(case)
            agreed.append(output)
    valid = [inputs[case] for case in kept]
    if len(kept) < rules.min_valid:
        reason = f"{len(kept)} valid cases, fewer than {rules.min_valid}"
        return Selection(tuple(valid), tuple(agreed), 0, reason, dropped)
    num_passing = sum(
        all(_same(outputs[case][reference], output) for case, output in zip(kept, agreed, strict=True))
        for reference in range(rules.num_references)
    )
    reason = ""
    if num_passing < rules.min_pass:
        reason = f"{num_passing} of {rules.num_references} references pass all cases, fewer than {rules.min_pass}"
    return Selection(tuple(valid), tuple(agreed), num_passing, reason, dropped)


def _agreed(written: Sequence[str | None], min_agree: int) -> tuple[str | None, str]:
    """What enough references wrote, or why there is no such output."""
    words = Counter(tuple(output.split()) for output in written if output is not None)
    if not words:
        return None, "every reference failed"
    most, num_agree = words.most_common(1)[0]
    if num_agree < min_agree:
        return None, "references disagree"
    if not most:
        return None, "the output is empty"
    return next(output for output in written if output is not None and tuple(output.split()) == most), ""


def _same(output: str | None, expected: str) -> bool:
    return output is not None and output.split() == expected.split()
