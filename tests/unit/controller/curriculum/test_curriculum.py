"""Draws: complete, without repeats, by order and priority, and the same again after a resumption."""

import itertools
import json
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crescendo.common.config.rl import CurriculumConfig, PrioritizedConfig
from crescendo.common.errors import CheckpointError, ConfigError, DataError, RequestError
from crescendo.controller.curriculum import ORDERS, Curriculum

difficulties = st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=60)
configs = st.builds(
    CurriculumConfig,
    order=st.sampled_from(sorted(ORDERS)),
    hard_from_iteration=st.integers(0, 30),
    hard_fraction=st.floats(0.01, 1),
    ramp_iterations=st.integers(1, 40),
    start_fraction=st.floats(0.01, 1),
    prioritized=st.builds(
        PrioritizedConfig,
        enabled=st.booleans(),
        smoothing=st.floats(0.05, 1),
        initial_rate=st.floats(0, 1),
        floor=st.floats(0, 1),
    ),
    seed=st.integers(0, 5),
)
results = st.lists(st.tuples(st.integers(0, 59), st.floats(0, 1)), max_size=30)


def trained(config: CurriculumConfig, levels: list[float | None], outcomes: list[tuple[int, float]]) -> Curriculum:
    curriculum = Curriculum(config, levels)
    for index, rate in outcomes:
        curriculum.record(index % len(levels), rate)
    return curriculum


@settings(deadline=None)
@given(configs, difficulties, results, st.integers(0, 60), st.integers(0, 90))
def test_a_draw_has_the_number_asked_for_and_repeats_only_when_it_must(
    config: CurriculumConfig,
    levels: list[float | None],
    outcomes: list[tuple[int, float]],
    iteration: int,
    count: int,
) -> None:
    drawn = trained(config, levels, outcomes).draw(iteration, count)
    assert len(drawn) == count
    assert all(0 <= index < len(levels) for index in drawn)
    repeats = Counter(drawn)
    assert not drawn or max(repeats.values()) == math.ceil(count / len(levels))


@settings(deadline=None)
@given(configs, difficulties, results, st.integers(0, 60), st.integers(1, 40))
def test_a_restored_curriculum_draws_the_same(
    config: CurriculumConfig,
    levels: list[float | None],
    outcomes: list[tuple[int, float]],
    iteration: int,
    count: int,
) -> None:
    curriculum = trained(config, levels, outcomes)
    state = json.loads(json.dumps(curriculum.to_dict()))
    restored = Curriculum.from_dict(config, levels, state)
    assert restored.draw(iteration, count) == curriculum.draw(iteration, count)
    assert restored.to_dict() == curriculum.to_dict()
    assert len(state["tried"]) == curriculum.num_tried == len({index % len(levels) for index, _ in outcomes})


@given(configs, difficulties, results)
def test_rates_and_weights_stay_within_their_bounds(
    config: CurriculumConfig, levels: list[float | None], outcomes: list[tuple[int, float]]
) -> None:
    curriculum = trained(config, levels, outcomes)
    for index in range(len(levels)):
        assert -1e-9 <= curriculum.success_rate(index) <= 1 + 1e-9
        assert curriculum.weight(index) >= (config.prioritized.floor if config.prioritized.enabled else 1.0)


@given(difficulties, st.integers(1, 20), st.floats(0.01, 1))
def test_easy_to_hard_only_grows_and_ends_with_everything(levels: list[float | None], ramp: int, start: float) -> None:
    curriculum = Curriculum(CurriculumConfig(order="easy_to_hard", ramp_iterations=ramp, start_fraction=start), levels)
    windows = [set(map(int, curriculum.eligible(iteration))) for iteration in range(ramp + 2)]
    assert all(earlier <= later for earlier, later in itertools.pairwise(windows))
    assert len(windows[0]) == max(1, math.ceil(start * len(levels)))
    assert windows[ramp] == set(range(len(levels)))
    known = [0.5 if level is None else level for level in levels]
    for window in windows:
        outside = set(range(len(levels))) - window
        assert not outside or max(known[i] for i in window) <= min(known[i] for i in outside)


def test_uniform_then_hard_switches_at_its_iteration() -> None:
    levels = [index / 9 for index in range(10)]
    config = CurriculumConfig(order="uniform_then_hard", hard_from_iteration=24, hard_fraction=0.3)
    curriculum = Curriculum(config, levels)
    assert set(curriculum.draw(23, 10)) == set(range(10))
    assert set(curriculum.draw(24, 3)) == {7, 8, 9}
    # More prompts than the hard share holds: the next hardest join, none is drawn twice.
    assert set(curriculum.draw(24, 5)) == {5, 6, 7, 8, 9}


def test_prompts_are_drawn_in_proportion_to_what_is_left_to_learn() -> None:
    config = CurriculumConfig(prioritized=PrioritizedConfig(enabled=True, smoothing=1.0, floor=0.05))
    curriculum = Curriculum(config, [None, None, None])
    for index, rate in enumerate((0.0, 0.5, 1.0)):
        curriculum.record(index, rate)
    first = Counter(curriculum.draw(iteration, 1)[0] for iteration in range(6000))
    for index, weight in enumerate((1.0, 0.5, 0.05)):
        expected = weight / 1.55
        assert first[index] / 6000 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 6000))


def test_without_a_floor_solved_prompts_come_last() -> None:
    config = CurriculumConfig(prioritized=PrioritizedConfig(enabled=True, smoothing=1.0, floor=0.0))
    curriculum = Curriculum(config, [None] * 6)
    for index in range(4):
        curriculum.record(index, 1.0)
    for iteration in range(50):
        assert set(curriculum.draw(iteration, 2)) == {4, 5}
        assert len(set(curriculum.draw(iteration, 4))) == 4


def test_priority_composes_with_the_order() -> None:
    config = CurriculumConfig(
        order="easy_to_hard", start_fraction=0.5, prioritized=PrioritizedConfig(enabled=True, smoothing=1.0, floor=0.0)
    )
    curriculum = Curriculum(config, [0.0, 0.1, 0.9, 1.0])
    curriculum.record(0, 1.0)
    assert curriculum.draw(0, 1) == [1]
    assert set(curriculum.draw(0, 2)) == {0, 1}


def test_smoothing_follows_the_newest_groups() -> None:
    prioritized = PrioritizedConfig(enabled=True, smoothing=0.5, initial_rate=0.2)
    curriculum = Curriculum(CurriculumConfig(prioritized=prioritized), [None])
    assert curriculum.success_rate(0) == 0.2
    curriculum.record(0, 1.0)
    assert curriculum.success_rate(0) == pytest.approx(0.6)
    curriculum.record(0, 0.0)
    assert curriculum.success_rate(0) == pytest.approx(0.3)


def test_seed_branch_and_iteration_change_the_draw() -> None:
    levels: list[float | None] = [None] * 100
    base = Curriculum(CurriculumConfig(seed=0), levels).draw(3, 10)
    assert Curriculum(CurriculumConfig(seed=0), levels).draw(3, 10) == base
    assert Curriculum(CurriculumConfig(seed=1), levels).draw(3, 10) != base
    assert Curriculum(CurriculumConfig(seed=0), levels).draw(3, 10, branch=1) != base
    assert Curriculum(CurriculumConfig(seed=0), levels).draw(4, 10) != base


def test_errors() -> None:
    with pytest.raises(DataError, match="no usable prompt"):
        Curriculum(CurriculumConfig(), [])
    with pytest.raises(ConfigError, match="nonsense"):
        Curriculum(CurriculumConfig(order="nonsense"), [None]).draw(0, 1)
    curriculum = Curriculum(CurriculumConfig(), [None, None])
    for index, rate in ((2, 0.5), (-1, 0.5), (0, 1.5), (0, math.nan)):
        with pytest.raises(RequestError):
            curriculum.record(index, rate)
    with pytest.raises(RequestError):
        curriculum.draw(0, -1)
    state = curriculum.to_dict()
    for damaged in ({}, state | {"num_prompts": 3}, state | {"version": 9}, state | {"tried": {"5": [1, 0.5]}},
                    state | {"tried": {"0": "x"}}):  # fmt: skip
        with pytest.raises(CheckpointError):
            Curriculum.from_dict(CurriculumConfig(), [None, None], damaged)


@settings(deadline=None)
@given(st.integers(1, 30), st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(0, 5))
def test_an_epoch_hands_out_every_prompt_once_before_any_twice(size: int, counts: list[int], seed: int) -> None:
    curriculum = Curriculum(CurriculumConfig(order="epoch", seed=seed), [None] * size)
    drawn: list[int] = []
    for iteration, count in enumerate(counts):
        part = curriculum.draw(iteration, count, branch=iteration % 2)
        assert curriculum.draw(iteration, count) == part  # an interrupted iteration asks again
        curriculum = Curriculum.from_dict(
            CurriculumConfig(order="epoch", seed=seed), [None] * size, json.loads(json.dumps(curriculum.to_dict()))
        )
        drawn += part
    for start in range(0, len(drawn), size):
        epoch = drawn[start : start + size]
        assert len(set(epoch)) == len(epoch)
