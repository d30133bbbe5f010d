"""The scorers as a run file may name them: options, ranges and kinds, as data.

scorers.json is written by `python -m crescendo.reward_service.scorers.catalogue` from the reward service's registry,
which nobody here may import; a test fails when it is stale. `check_link` finds a wrong name or option before
anything starts, `completed` gives the options that a stage fills in.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from crescendo.common.config.fields import Rule
from crescendo.common.config.option_text import OptionTextError, broken_rule, convert
from crescendo.common.config.problems import Problem

SCORER_KINDS = ("item", "remote")
GROUP_KINDS = ("group",)
_STAGE = "stage."


@dataclass(frozen=True)
class OptionFacts:
    """One option. kind: str, int, float or bool; filled_from, not_above: see reward_service.typed_options.option."""

    kind: str
    default: Any
    rule: Rule
    filled_from: str = ""
    not_above: str = ""


@dataclass(frozen=True)
class ScorerFacts:
    """One scorer. kind: item (by response), remote (a reward model) or group (by group, from numbers only)."""

    name: str
    kind: str
    summary: str
    source: str
    low: float
    high: float
    reads_tokens: bool
    options: Mapping[str, OptionFacts]


@lru_cache(maxsize=1)
def catalogue() -> Mapping[str, ScorerFacts]:
    """All scorers by name."""
    text = resources.files("crescendo.common.config").joinpath("scorers.json").read_text(encoding="utf-8")
    return {entry["name"]: _facts(entry) for entry in json.loads(text)}


def check_link(
    path: str, scorer: str, options: Mapping[str, str], kinds: tuple[str, ...], stage: Any | None
) -> Iterator[Problem]:
    """What is wrong with one link of a chain. path: in the run file; kinds: those that may stand there.

    stage: the StageConfig that fills options in; None before there is one.
    """
    facts = catalogue().get(scorer)
    if facts is None or facts.kind not in kinds:
        yield _unknown_scorer(path, scorer, kinds)
        return
    for name in options:
        if name not in facts.options:
            yield _unknown_option(path, facts, name)
    given = completed(scorer, options, stage)
    values: dict[str, Any] = {}
    for name, option in facts.options.items():
        broken, values[name] = _read(option, given.get(name))
        is_filled_later = option.filled_from and stage is None and name not in given
        if broken and not is_filled_later:
            shown = f"is {given[name]!r}" if name in given else "is not set"
            yield Problem(f"{path}.options.{name}", f"{path}.options.{name} {shown}; {broken}.", option.rule.doc + ".")
            values[name] = None
    yield from _orders(path, facts, values)


def completed(scorer: str, options: Mapping[str, str], stage: Any | None) -> dict[str, str]:
    """The options of a link with those that a stage gives where the run file is silent."""
    facts = catalogue().get(scorer)
    given = dict(options)
    for name, option in facts.options.items() if facts and stage is not None else ():
        if option.filled_from.startswith(_STAGE):
            given.setdefault(name, str(getattr(stage, option.filled_from.removeprefix(_STAGE))))
    return given


def _read(option: OptionFacts, text: str | None) -> tuple[str, Any]:
    """The rule that the text breaks, if any, and its value."""
    try:
        value = option.default if text is None else convert(option.kind, str(text))
    except OptionTextError as wrong:
        return str(wrong), None
    return broken_rule(option.rule, value), value


def _orders(path: str, facts: ScorerFacts, values: Mapping[str, Any]) -> Iterator[Problem]:
    for name, option in facts.options.items():
        value, limit = values[name], values.get(option.not_above)
        if limit and value is not None and value > limit:
            yield Problem(
                f"{path}.options.{name}",
                f"{path}.options.{name} is {value}; it must be at most {option.not_above}, {limit}.",
                f"Lower it, or raise {option.not_above}.",
            )


def _unknown_scorer(path: str, scorer: str, kinds: tuple[str, ...]) -> Problem:
    known = [name for name, facts in catalogue().items() if facts.kind in kinds]
    near = difflib.get_close_matches(scorer, known, n=1)
    what = f"{path}.scorer is {scorer!r}; there is no such {'group-wise ' if kinds == GROUP_KINDS else ''}scorer."
    elsewhere = catalogue().get(scorer)
    if elsewhere is not None:
        fix = f"{scorer} belongs in rewards.{'group' if elsewhere.kind in GROUP_KINDS else 'chains'}."
    else:
        fix = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(sorted(known))}."
    return Problem(f"{path}.scorer", what, fix)


def _unknown_option(path: str, facts: ScorerFacts, name: str) -> Problem:
    near = difflib.get_close_matches(name, facts.options, n=1)
    known = ", ".join(facts.options) or "none"
    return Problem(
        f"{path}.options.{name}",
        f"{path}.options.{name}: {facts.name} has no such option.",
        f"Did you mean {near[0]}?" if near else f"Its options are: {known}.",
    )


def _facts(entry: dict[str, Any]) -> ScorerFacts:
    options = {
        name: OptionFacts(
            kind=option["kind"],
            default=option["default"],
            rule=_rule(option["rule"]),
            filled_from=option.get("filled_from", ""),
            not_above=option.get("not_above", ""),
        )
        for name, option in entry["options"].items()
    }
    return ScorerFacts(**{**entry, "options": options})


def _rule(entry: dict[str, Any]) -> Rule:
    return Rule(**{**entry, "choices": tuple(entry.get("choices", ()))})
