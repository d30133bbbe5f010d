"""Scorers that are pure text functions, the registry, and the checks of chains and options."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2
from crescendo.proto.v1.reward_pb2 import ScorerSpec
from crescendo.reward_service.scorers import (
    GROUP_SCORERS,
    SCORERS,
    Sample,
    check_chain,
    check_group_chain,
    exact_match,
    format,
    language_consistency,
)

CORRECT, WRONG = common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG
UNPARSABLE, UNSUPPORTED = common_pb2.VERDICT_UNPARSABLE, common_pb2.VERDICT_UNSUPPORTED


@pytest.mark.parametrize(
    ("response", "golds", "options", "verdict"),
    [
        ("a1=4b2=6#9$", ("9",), {"marker": "#", "strip": "$"}, CORRECT),
        ("a1=4b2=6#8$", ("9",), {"marker": "#", "strip": "$"}, WRONG),
        ("a1=4b2=6", ("9",), {"marker": "#", "strip": "$"}, UNPARSABLE),
        ("#8#9$ ", ("9",), {"marker": "#", "strip": "$"}, CORRECT),
        ("#9#8", ("9",), {"marker": "#"}, WRONG),
        ("#9$", ("9",), {"marker": "#"}, WRONG),
        ("Paris", ("Rome", "Paris"), {}, CORRECT),
        ("  PARIS \n is ", ("Paris is",), {}, WRONG),
        ("  PARIS \n is ", ("Paris is",), {"normalized": True}, CORRECT),
        ("9", (), {}, UNSUPPORTED),
    ],
)
def test_exact_match(response: str, golds: tuple[str, ...], options: dict[str, object], verdict: int) -> None:
    outcome = exact_match.score(Sample(response, golds), exact_match.ExactMatchOptions(**options))  # type: ignore[arg-type]
    assert outcome.verdict == verdict
    assert outcome.raw == (1.0 if verdict == CORRECT else 0.0)


@pytest.mark.parametrize(
    ("response", "options", "is_right"),
    [
        ("<think>a</think><answer>b</answer>", {}, True),
        ("\n<think>a</think>\n<answer>b</answer>\n", {}, True),
        ("<think>a</think><think>b</think><answer>c</answer>", {}, False),
        ("<answer>b</answer><think>a</think>", {}, False),
        ("<think>a<answer>b</answer></think>", {}, False),
        ("<think>a</think>", {}, False),
        ("hm <think>a</think><answer>b</answer>", {}, False),
        ("<think>a</think> so <answer>b</answer>", {"enclosed": False}, True),
        ("<think>a</think><answer>b</answer> done", {}, False),
        ("a</think><answer>b</answer>", {"prefilled": True}, True),
        ("<think>a</think>b", {"tags": "think", "enclosed": False}, True),
        ("", {}, False),
    ],
)
def test_format(response: str, options: dict[str, object], is_right: bool) -> None:
    outcome = format.score(Sample(response), format.FormatOptions(**options))  # type: ignore[arg-type]
    assert (outcome.raw, outcome.verdict) == ((1.0, CORRECT) if is_right else (0.0, WRONG))


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("so we add two", "en", 1.0),
        ("so мы add two", "en", 0.75),
        ("我们 add", "zh", 2 / 3),
        ("123 + 4", "en", 1.0),
        ("", "en", 1.0),
    ],
)
def test_language_consistency(text: str, language: str, share: float) -> None:
    outcome = language_consistency.score(Sample(text), language_consistency.LanguageOptions(language))
    assert outcome.raw == pytest.approx(share)


@given(st.text(), st.sampled_from(["exact_match", "format", "language_consistency"]))
def test_pure_scorers_stay_in_range(text: str, name: str) -> None:
    scorer = SCORERS[name]
    outcome = scorer.score(Sample(text, ("1",)), scorer.options())
    assert scorer.low <= outcome.raw <= scorer.high


def test_every_scorer_is_documented() -> None:
    for name, scorer in [*SCORERS.items(), *GROUP_SCORERS.items()]:
        assert name == scorer.name
        assert scorer.source
        assert scorer.low < scorer.high


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (ScorerSpec(name="nonsense"), "nonsense"),
        (ScorerSpec(name="length_k15"), "length_k15"),
        (ScorerSpec(name="exact_match", options={"markers": "#"}), "markers"),
        (ScorerSpec(name="exact_match", options={"normalized": "perhaps"}), "normalized"),
        (ScorerSpec(name="math_answer", options={"extract": "first"}), "extract"),
        (ScorerSpec(name="format", options={"tags": "a b"}), "tags"),
        (ScorerSpec(name="format", weight=float("nan")), "weight"),
        (ScorerSpec(name="format", weight=float("inf")), "weight"),
    ],
)
def test_check_chain_names_what_is_wrong(spec: ScorerSpec, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        check_chain([ScorerSpec(name="exact_match", weight=1.0), spec])


def test_check_chain_accepts_good_chains_and_refuses_empty_ones() -> None:
    check_chain([ScorerSpec(name="math_answer", weight=1.0, options={"extract": "boxed"}), ScorerSpec(name="format")])
    check_group_chain([ScorerSpec(name="length_k15", weight=0.2)])
    with pytest.raises(RequestError, match="empty"):
        check_chain([])
    with pytest.raises(RequestError, match="exact_match"):
        check_group_chain([ScorerSpec(name="exact_match")])
