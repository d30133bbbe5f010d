"""The repetition rule against its definition."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crescendo.proto.v1 import common_pb2
from crescendo.rollout.repetition import RepetitionDetector, false_stop_rate, first_stop


def rule(ngram: int, window: int, count: int) -> common_pb2.RepetitionRule:
    return common_pb2.RepetitionRule(ngram_tokens=ngram, window_tokens=window, count=count)


def loops_by_definition(tokens: Sequence[int], one: common_pb2.RepetitionRule) -> bool:
    """Some n-gram stands count times back to back at the end, within the window."""
    for n in range(1, one.ngram_tokens + 1):
        span = n * one.count
        if span > one.window_tokens or span > len(tokens):
            continue
        tail = list(tokens[-span:])
        if tail == tail[:n] * one.count:
            return True
    return False


RULES = st.builds(rule, st.integers(1, 9), st.integers(2, 40), st.integers(2, 5))
# Few distinct tokens and repeated blocks, so that loops do occur.
TOKENS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 6)), min_size=1, max_size=8
).map(lambda blocks: [token for block, times in blocks for token in block * times])


@given(TOKENS, RULES)
@settings(max_examples=400, deadline=None)
def test_detector_agrees_with_the_definition_at_every_token(tokens: list[int], one: common_pb2.RepetitionRule) -> None:
    detector = RepetitionDetector(one)
    for end, token in enumerate(tokens, start=1):
        assert detector.add(token) == loops_by_definition(tokens[:end], one)


@given(TOKENS, RULES, st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_continuation_decides_like_an_uninterrupted_response(
    tokens: list[int], one: common_pb2.RepetitionRule, cut: int
) -> None:
    cut = min(cut, len(tokens))
    whole = RepetitionDetector(one)
    expected = [whole.add(token) for token in tokens][cut:]
    continued = RepetitionDetector(one, earlier=tokens[:cut])
    assert [continued.add(token) for token in tokens[cut:]] == expected


@pytest.mark.parametrize("one", [rule(0, 100, 3), rule(5, 100, 0), rule(5, 100, 1), rule(5, 2, 3)])
def test_a_rule_that_is_off_or_cannot_fit_never_stops(one: common_pb2.RepetitionRule) -> None:
    assert first_stop([7] * 200, one) is None


def test_stops_at_the_first_token_that_completes_the_loop() -> None:
    assert first_stop([1, 2, 3, 9, 8, 9, 8, 9, 8, 5], rule(4, 32, 3)) == 9


def test_false_stop_rate_counts_responses() -> None:
    responses = [[1, 2, 3, 4], [5, 5, 5, 5], [1, 2, 1, 2, 1, 2], [1, 2, 1, 2]]
    assert false_stop_rate(responses, rule(2, 16, 3)) == pytest.approx(0.5)
    assert false_stop_rate([], rule(2, 16, 3)) == 0.0
