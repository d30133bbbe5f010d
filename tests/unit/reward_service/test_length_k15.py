"""Kimi k1.5's length reward, by hand and by properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.proto.v1.reward_pb2 import GroupMember, ScorerSpec
from crescendo.reward_service.scorers import resolve_group_chain
from crescendo.reward_service.scorers.base import NoOptions
from crescendo.reward_service.scorers.groups import score_group
from crescendo.reward_service.scorers.length_k15 import score

MEMBERS = st.lists(st.tuples(st.integers(0, 131_072), st.booleans()), min_size=1, max_size=16)


def rewards(members: list[tuple[int, bool]]) -> list[float]:
    group = [GroupMember(num_tokens=length, correct=correct) for length, correct in members]
    return [outcome.raw for outcome in score(group, NoOptions())]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        # lambda = 0.5 - (len - 100) / 400: 0.5, 0.25, 0, -0.25, -0.5
        ([(100, True), (200, True), (300, True), (400, True), (500, True)], [0.5, 0.25, 0.0, -0.25, -0.5]),
        ([(100, False), (200, False), (300, False), (400, False), (500, False)], [0.0, 0.0, 0.0, -0.25, -0.5]),
        ([(10, True), (20, False)], [0.5, -0.5]),
        ([(10, False), (20, True)], [0.0, -0.5]),
        ([(7, True), (7, False), (7, True)], [0.0, 0.0, 0.0]),
        ([(7, True)], [0.0]),
        ([], []),
    ],
)
def test_by_hand(members: list[tuple[int, bool]], expected: list[float]) -> None:
    assert rewards(members) == pytest.approx(expected)


@given(MEMBERS)
def test_range_and_order(members: list[tuple[int, bool]]) -> None:
    values = rewards(members)
    assert all(-0.5 <= value <= 0.5 for value in values)
    for (length, correct), value in zip(members, values, strict=True):
        if not correct:
            assert value <= 0.0
        for (other, also), lower in zip(members, values, strict=True):
            if length < other and correct == also:
                assert value >= lower
            if length == other and correct and not also:
                assert value >= lower


@given(MEMBERS, st.integers(1, 1000), st.integers(1, 50))
def test_only_relative_lengths_matter(members: list[tuple[int, bool]], shift: int, factor: int) -> None:
    moved = [(length * factor + shift, correct) for length, correct in members]
    assert rewards(moved) == pytest.approx(rewards(members))


@given(MEMBERS)
def test_extremes_of_correct_members(members: list[tuple[int, bool]]) -> None:
    lengths = [length for length, _ in members]
    if min(lengths) == max(lengths):
        assert rewards(members) == [0.0] * len(members)
        return
    for (length, correct), value in zip(members, rewards(members), strict=True):
        if length == max(lengths):
            assert value == -0.5
        if length == min(lengths):
            assert value == (0.5 if correct else 0.0)


def test_components_carry_name_and_weight() -> None:
    chain = resolve_group_chain([ScorerSpec(name="length_k15", weight=0.2)])
    group = [GroupMember(num_tokens=10, correct=True), GroupMember(num_tokens=30, correct=False)]
    ((first,), (second,)) = score_group(group, chain, [0.2])
    assert (first.name, first.weight, first.raw) == ("length_k15", 0.2, 0.5)
    assert second.raw == -0.5
