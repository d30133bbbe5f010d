"""Rewards of length and repetition, by hand from the papers' formulas and by properties."""

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.proto.v1.common_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP
from crescendo.proto.v1.reward_pb2 import GroupMember
from crescendo.reward_service.scorers import GROUP_SCORERS, Sample, cosine_length, repetition_penalty, soft_overlong
from crescendo.reward_service.scorers.repetition_penalty import (
    RepetitionOptions,
    repeated_share,
    repeated_tokens,
    token_penalties,
    token_returns,
)
from crescendo.reward_service.typed_options import parse_options

TOKENS = st.lists(st.integers(0, 3), max_size=60)


def packed(tokens: list[int]) -> bytes:
    return array("i", tokens).tobytes()


# DAPO, equation 13, with its own numbers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(0, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (20480, -1.0), (20481, -1.0), (10**6, -1.0)],
)
def test_soft_overlong(num_tokens: int, expected: float) -> None:
    options = soft_overlong.OverlongOptions(max_tokens=20480, cache_tokens=4096)
    (outcome,) = soft_overlong.score([GroupMember(num_tokens=num_tokens)], options)
    assert outcome.raw == pytest.approx(expected)


# Cosine reward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "correct", "expected"),
    [
        (0, True, 2.0),
        (5000, True, 1.5),  # half-way: the mean of r_0 and r_L
        (2500, True, 1 + 0.5 * (1 + math.cos(math.pi / 4))),
        (9983, True, 1.0),
        (0, False, -10.0),
        (5000, False, -5.0),
        (9983, False, 0.0),
        (9984, True, -10.0),  # 9984 + 16 reaches L_max
        (9984, False, -10.0),
    ],
)
def test_cosine(num_tokens: int, correct: bool, expected: float) -> None:
    options = cosine_length.CosineOptions(max_tokens=10000)
    member = GroupMember(num_tokens=num_tokens, correct=correct, finish_reason=FINISH_REASON_STOP)
    assert cosine_length.cosine_reward(member, options) == pytest.approx(expected, abs=1e-4)


def test_a_cut_response_gets_the_overlong_reward() -> None:
    options = cosine_length.CosineOptions(max_tokens=10000)
    member = GroupMember(num_tokens=5000, finish_reason=FINISH_REASON_LENGTH)
    assert cosine_length.cosine_reward(member, options) == -10.0


@given(st.integers(0, 9983), st.integers(0, 9983))
def test_shorter_is_better_if_right_and_worse_if_wrong(one: int, other: int) -> None:
    options = cosine_length.CosineOptions(max_tokens=10000)
    short, long = sorted((one, other))

    def value(num_tokens: int, correct: bool) -> float:
        return cosine_length.cosine_reward(GroupMember(num_tokens=num_tokens, correct=correct), options)

    assert value(short, True) >= value(long, True) >= 1.0
    assert value(short, False) <= value(long, False) <= 0.0


# Groups -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 40000), st.booleans(), st.sampled_from([1, 2, 3])), max_size=12), st.randoms())
def test_group_rewards_follow_their_members_in_any_order(members: list[tuple[int, bool, int]], random) -> None:  # type: ignore[no-untyped-def]
    group = [GroupMember(num_tokens=n, correct=c, finish_reason=r) for n, c, r in members]  # type: ignore[arg-type]
    order = list(range(len(group)))
    random.shuffle(order)
    for scorer in GROUP_SCORERS.values():
        given_options = {"max_tokens": "30000"} if scorer.name != "length_k15" else {}
        options = parse_options(scorer.options, given_options, scorer.name)
        values = [outcome.raw for outcome in scorer.score(group, options)]
        shuffled = [outcome.raw for outcome in scorer.score([group[i] for i in order], options)]
        assert shuffled == [values[i] for i in order]
        assert all(scorer.low <= value <= scorer.high for value in values)


# Repetition -------------------------------------------------------------------------------------------------------


def test_repeated_tokens_by_hand() -> None:
    # 2-grams of 1 2 3 1 2 2: 12 23 31 12 22; the second 12 repeats, at tokens 3 and 4.
    assert repeated_tokens(packed([1, 2, 3, 1, 2, 2]), 2) == [False, False, False, True, True, False]
    assert repeated_share(packed([1, 2, 3, 1, 2, 2]), 2) == pytest.approx(1 / 5)
    # Overlapping repeats penalize each token once: 1 1 1 1 has 11 three times.
    assert repeated_tokens(packed([1, 1, 1, 1]), 2) == [False, True, True, True]
    assert repeated_tokens(packed([1, 1]), 3) == [False, False]
    assert repeated_share(b"", 2) == 0.0


def test_returns_are_discounted_from_the_end() -> None:
    penalties = token_penalties([False, False, True], 0.05)
    assert token_returns(penalties, 0.99) == pytest.approx([-0.05 * 0.99**2, -0.05 * 0.99, -0.05])
    assert token_returns(penalties, 0.0) == pytest.approx([0.0, 0.0, -0.05])


def test_the_papers_defaults() -> None:
    options = RepetitionOptions()
    assert (options.ngram, options.penalty, options.gamma) == (40, 0.05, 0.99)
    tokens = list(range(40)) * 2  # the second half repeats one 40-gram
    outcome = repetition_penalty.score(Sample("", token_ids=packed(tokens)), options)
    expected = sum(token_returns([0.0] * 40 + [-0.05] * 40, 0.99)) / 80
    assert outcome.raw == pytest.approx(expected)
    assert repetition_penalty.score(Sample("", token_ids=packed(tokens[:79])), options).raw == 0.0


def test_without_tokens_words_count() -> None:
    options = RepetitionOptions(form="share", ngram=2, penalty=1.0)
    assert repetition_penalty.score(Sample("so we try So we try"), options).raw == pytest.approx(-2 / 5)
    assert repetition_penalty.score(Sample(""), options).raw == 0.0


@given(TOKENS, st.integers(1, 6), st.sampled_from(["dense", "share"]))
def test_repetition_is_a_bounded_penalty(tokens: list[int], ngram: int, form: str) -> None:
    options = RepetitionOptions(form=form, ngram=ngram, penalty=0.05, gamma=0.9)
    outcome = repetition_penalty.score(Sample("", token_ids=packed(tokens)), options)
    assert -0.05 / (1 - 0.9) <= outcome.raw <= 0.0
    grams = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
    assert (outcome.raw == 0.0) == (len(set(grams)) == len(grams))


def test_repetition_is_linear_in_length() -> None:
    outcome = repetition_penalty.score(Sample("", token_ids=packed([1] * 131_072)), RepetitionOptions())
    assert outcome.raw == pytest.approx(-5.0, abs=0.01)
