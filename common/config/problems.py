"""What is wrong with a run file: problems are collected, then raised together as one ConfigError."""

from collections.abc import Sequence
from dataclasses import dataclass

from crescendo.common.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """One broken rule.

    field: path in the run file, `steps[1].rl.stages[0].name`; message: value and rule; fix: what to do;
    related: further fields that the rule reads, or that the author may have meant.
    """

    field: str
    message: str
    fix: str
    related: tuple[str, ...] = ()


def without_consequences(first: Sequence[Problem], later: Sequence[Problem]) -> list[Problem]:
    """All of `first`, and those of `later` that don't merely follow from them (they read the same fields)."""
    broken = {name for problem in first for name in (problem.field, *problem.related)}

    def follows(problem: Problem) -> bool:
        return any(
            name == other or name.startswith((f"{other}.", f"{other}["))
            for name in (problem.field, *problem.related)
            for other in broken
        )

    return [*first, *(problem for problem in later if not follows(problem))]


def raise_if_any(source: str, problems: Sequence[Problem]) -> None:
    """Raises ConfigError naming every problem; does nothing when there are none."""
    if not problems:
        return
    if len(problems) == 1:
        only = problems[0]
        raise ConfigError(f"{source}: {only.message}", field=only.field, fix=only.fix)
    lines = "".join(f"\n  {number}. {p.message} Fix: {p.fix}" for number, p in enumerate(problems, 1))
    raise ConfigError(f"{source} has {len(problems)} problems:{lines}", field=problems[0].field)
