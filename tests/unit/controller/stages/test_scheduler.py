"""The stage scheduler: through the stages by rule, back to the right checkpoint, the same after a resumption."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.config.rl import GateConfig, StageConfig
from crescendo.common.errors import CheckpointError, ConfigError, RequestError
from crescendo.controller.loop.control import Control
from crescendo.controller.stages import IterationFacts, StageScheduler, TransitionKind, nearest_commit


def facts(iteration: int, *, length: float = 10.0, accuracy: float | None = None) -> IterationFacts:
    return IterationFacts(iteration, 0.5, length, 0.1, accuracy)


def stages(*gates: GateConfig, **options: Any) -> list[StageConfig]:
    return [StageConfig(name=f"stage-{i}", gate=gate, **options) for i, gate in enumerate(gates)]


def step_gate(iterations: int, rollback: str = "last") -> GateConfig:
    return GateConfig(name="step", iterations=iterations, rollback=rollback)


MANUAL = GateConfig(name="manual")


def test_walks_through_the_stages_and_finishes() -> None:
    scheduler = StageScheduler(stages(step_gate(2), step_gate(3)), first_iteration=1)
    assert scheduler.observe(facts(1, accuracy=0.2)) is None
    promoted = scheduler.observe(facts(2))
    assert promoted is not None
    assert (promoted.kind, promoted.from_stage, promoted.to_stage) == (TransitionKind.PROMOTE, "stage-0", "stage-1")
    assert (promoted.left_by, promoted.iteration, promoted.rollback_iteration) == ("step", 2, 2)
    scheduler.apply(promoted, 3)
    assert (scheduler.stage.name, scheduler.entered_iteration, scheduler.history) == ("stage-1", 3, ())
    assert [scheduler.observe(facts(i)) for i in (3, 4)] == [None, None]
    finished = scheduler.observe(facts(5, accuracy=0.9))
    assert finished is not None
    assert (finished.kind, finished.to_stage) == (TransitionKind.FINISH, "")
    scheduler.apply(finished, 6)
    assert scheduler.finished
    first, last = scheduler.records
    assert (first.entered_iteration, first.left_iteration, first.left_by, first.accuracy) == (1, 2, "step", 0.2)
    assert (last.entered_iteration, last.left_iteration, last.left_by, last.accuracy) == (3, 5, "step", 0.9)
    with pytest.raises(RequestError, match="finished"):
        scheduler.observe(facts(6))


def test_observing_does_not_move_before_apply() -> None:
    """A crash between the decision and its execution must repeat the decision."""
    scheduler = StageScheduler(stages(step_gate(1), MANUAL))
    assert scheduler.observe(facts(0)) is not None
    assert scheduler.stage.name == "stage-0"
    restored = StageScheduler.from_dict(stages(step_gate(1), MANUAL), scheduler.to_dict())
    assert restored.observe(facts(1)) is not None


@pytest.mark.parametrize(
    ("rollback", "expected"), [("last", 9), ("best", 6), ("length_minimum", 4)], ids=["last", "best", "length"]
)
def test_rollback_targets(rollback: str, expected: int) -> None:
    gate = GateConfig(name="step", iterations=10, rollback=rollback, smoothing=1.0)
    scheduler = StageScheduler(stages(gate, MANUAL))
    lengths = [50, 40, 30, 20, 10, 12, 14, 16, 18, 20]
    accuracies = {0: 0.1, 3: 0.5, 6: 0.5, 8: 0.4}
    for i in range(9):
        assert scheduler.observe(facts(i, length=lengths[i], accuracy=accuracies.get(i))) is None
    transition = scheduler.observe(facts(9, length=lengths[9]))
    assert transition is not None
    assert (transition.rollback, transition.rollback_iteration) == (rollback, expected)
    assert scheduler.pins() == (frozenset() if rollback == "last" else frozenset({expected}))


def test_the_length_minimum_is_of_the_smoothed_length() -> None:
    gate = GateConfig(name="step", iterations=8, rollback="length_minimum", smoothing=0.3)
    scheduler = StageScheduler(stages(gate, MANUAL))
    transition = None
    for i, length in enumerate((50, 20, 50, 45, 35, 30, 60, 90)):
        transition = scheduler.observe(facts(i, length=length))
    assert transition is not None
    # A single short outlier at iteration 1 does not decide.
    assert transition.rollback_iteration == 5


def test_deepscaler_leaves_8k_for_the_turn_and_16k_for_its_best() -> None:
    turn = GateConfig(
        name="length_turn", window=50, smoothing=0.2, min_clip_ratio=0.06, max_accuracy_slope=1e-4,
        min_length_slope=0.2, patience=5, rollback="length_minimum",
    )  # fmt: skip
    plateau = GateConfig(
        name="plateau", window=60, max_accuracy_slope=5e-5, max_reward_slope=5e-5, patience=3, rollback="best"
    )
    scheduler = StageScheduler(stages(turn, plateau, MANUAL, max_iterations=5000))
    transition, iteration = None, 0
    while transition is None:
        falling = iteration < 1000
        transition = scheduler.observe(
            IterationFacts(
                iteration,
                reward=0.46 + 0.12 * min(1.0, iteration / 1000),
                length=5500 - 2 * iteration if falling else 3500 + (iteration - 1000),
                clip_ratio=0.042 if falling else 0.042 + 0.023 * (iteration - 1000) / 300,
                accuracy=0.33 - 0.00005 * max(0, iteration - 1000) if iteration % 10 == 0 else None,
            )
        )
        iteration += 1
    assert transition.left_by == "length_turn"
    assert 1230 <= transition.iteration <= 1260
    assert abs(transition.rollback_iteration - 1000) <= 5
    scheduler.apply(transition, iteration)
    start, transition = iteration, None
    while transition is None:
        done = iteration - start
        risen = min(1.0, done / 400)
        accuracy = 0.33 + 0.05 * risen - (0.01 if done >= 450 else 0.0) if done % 10 == 0 else None
        transition = scheduler.observe(IterationFacts(iteration, 0.58 + 0.045 * risen, 4000.0, 0.02, accuracy))
        iteration += 1
    assert transition.left_by == "plateau"
    assert transition.to_stage == "stage-2"
    assert 400 <= transition.rollback_iteration - start <= 450


@pytest.mark.parametrize(
    ("choice", "last", "kind"),
    [
        ("promote", False, TransitionKind.PROMOTE),
        ("promote", True, TransitionKind.FINISH),
        ("stop", False, TransitionKind.STOP),
        ("fail", False, TransitionKind.FAIL),
    ],
)
def test_max_iterations(choice: str, last: bool, kind: TransitionKind) -> None:
    plan = stages(*([MANUAL] if last else [MANUAL, MANUAL]), max_iterations=3, on_max_iterations=choice)
    scheduler = StageScheduler(plan, first_iteration=5)
    assert [scheduler.observe(facts(i)) for i in (5, 6)] == [None, None]
    transition = scheduler.observe(facts(7))
    assert transition is not None
    assert (transition.kind, transition.left_by) == (kind, "max_iterations")
    scheduler.apply(transition, 8)
    assert scheduler.finished == (kind is not TransitionKind.PROMOTE)


def test_people_promote_to_the_next_a_later_or_past_the_last_stage() -> None:
    scheduler = StageScheduler(stages(MANUAL, MANUAL, MANUAL))
    scheduler.observe(facts(0))
    with pytest.raises(RequestError, match="later stages: stage-1, stage-2"):
        scheduler.promote("stage-0")
    assert scheduler.promote().to_stage == "stage-1"
    scheduler.apply(scheduler.promote("stage-2"), 1)
    assert scheduler.stage.name == "stage-2"
    assert [record.entered_iteration for record in scheduler.records] == [0, -1, 1]
    assert scheduler.promote().kind is TransitionKind.FINISH
    assert scheduler.promote().left_by == "manual"


@pytest.mark.parametrize(
    ("wish", "kept"), [("stage-1", None), ("stage-2", "stage-2"), ("", None), (None, None)], ids=repr
)
def test_a_promotion_asked_for_while_the_gate_opens_is_not_asked_again(wish: str | None, kept: str | None) -> None:
    scheduler = StageScheduler(stages(step_gate(1), step_gate(1), MANUAL))
    control = Control()
    control.promote_to = wish
    transition = scheduler.observe(facts(0))
    assert transition is not None
    scheduler.apply(transition, 1)
    control.entered(scheduler.later)
    assert control.promote_to == kept


def test_a_promotion_is_wanted_until_the_run_is_there() -> None:
    scheduler = StageScheduler(stages(MANUAL, MANUAL))
    control = Control()
    control.promote_to = "stage-1"
    assert control.still_wants(scheduler.later)
    scheduler.apply(scheduler.promote("stage-1"), 1)
    assert not control.still_wants(scheduler.later)
    control.promote_to = ""  # past the last stage
    assert control.still_wants(scheduler.later)


def test_a_stage_without_iterations_rolls_back_to_before_itself() -> None:
    scheduler = StageScheduler(stages(GateConfig(name="manual", rollback="best"), MANUAL), first_iteration=4)
    assert scheduler.promote().rollback_iteration == 3
    assert scheduler.pins() == frozenset()


def test_smoothing_restarts_after_a_rollback() -> None:
    scheduler = StageScheduler(stages(step_gate(3), MANUAL))
    scheduler.observe(facts(0))
    scheduler.observe(facts(1))
    scheduler.restart_smoothing()
    assert scheduler.observe(facts(2)) is None
    assert len(scheduler.history) == 1


@given(st.lists(st.booleans(), max_size=25))
def test_state_survives_json_at_any_point(validated: list[bool]) -> None:
    plan = stages(step_gate(4), GateConfig(name="plateau", window=3, rollback="best"), step_gate(6), max_iterations=9)
    live = stored = StageScheduler(plan)
    for iteration, with_accuracy in enumerate(validated):
        if live.finished:
            break
        row = facts(iteration, accuracy=0.5 if with_accuracy else None)
        stored = StageScheduler.from_dict(plan, json.loads(json.dumps(stored.to_dict(), allow_nan=False)))
        one, two = live.observe(row), stored.observe(row)
        assert one == two
        if one is not None and two is not None:
            live.apply(one, iteration + 1)
            stored.apply(two, iteration + 1)
    assert live.to_dict() == stored.to_dict()


def test_errors() -> None:
    with pytest.raises(ConfigError, match="empty"):
        StageScheduler([])
    plan = stages(step_gate(1), MANUAL)
    scheduler = StageScheduler(plan)
    transition = scheduler.observe(facts(3))
    assert transition is not None
    with pytest.raises(RequestError, match="observed after"):
        scheduler.observe(facts(3))
    scheduler.apply(transition, 4)
    with pytest.raises(RequestError, match="stage-0"):
        scheduler.apply(transition, 4)
    state = scheduler.to_dict()
    for damaged in ({}, state | {"version": 7}, state | {"records": [{"nonsense": 1}]}, state | {"stage": "other"}):
        with pytest.raises(CheckpointError):
            StageScheduler.from_dict(plan, damaged)
    with pytest.raises(CheckpointError, match="run file has"):
        StageScheduler.from_dict(stages(MANUAL), state)


@pytest.mark.parametrize(
    ("target", "committed", "expected"),
    [(12, [0, 10, 20], 10), (16, [0, 10, 20], 20), (15, [10, 20], 10), (3, [], None)],
)
def test_nearest_commit(target: int, committed: list[int], expected: int | None) -> None:
    assert nearest_commit(target, committed) == expected
