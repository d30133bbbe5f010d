"""Rewards, facts and the recorded batch."""

import numpy as np
import pytest

from crescendo.common.config.rl import MirrorDescentConfig, RlStepConfig, StageConfig
from crescendo.common.config.schema import Config
from crescendo.common.types import (
    Group,
    GroupState,
    PromptId,
    Segment,
    Trajectory,
    TrajectoryState,
    group_id,
    trajectory_id,
)
from crescendo.controller.loop import batches
from crescendo.proto.v1 import common_pb2

GROUP = group_id(0, 3, 1)
STOP, LENGTH = common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH
REPEAT = common_pb2.FINISH_REASON_REPEAT


def segment(count: int) -> Segment:
    return Segment(
        1, 3, "8k", 0, np.arange(count, dtype=np.int32), np.zeros(count, np.float32), np.ones(count, np.bool_)
    )


def trajectory(
    sample: int,
    *,
    correct: bool,
    reason: "common_pb2.FinishReason.ValueType" = STOP,
    tokens: int = 4,
    state: TrajectoryState = TrajectoryState.SCORED,
    segments: int = 1,
) -> Trajectory:
    verdict = common_pb2.VERDICT_CORRECT if correct else common_pb2.VERDICT_WRONG
    component = common_pb2.RewardComponent(name="exact", raw=float(correct), weight=1.0, verdict=verdict)
    return Trajectory(
        trajectory_id=trajectory_id(GROUP, sample),
        group_id=GROUP,
        prompt_token_ids=np.array([1, 2], np.int32),
        segments=tuple(segment(tokens) for _ in range(segments)),
        state=state,
        finish_reason=reason,
        components=(component,),
    )


def group(*trajectories: Trajectory) -> Group:
    ids = tuple(t.trajectory_id for t in trajectories)
    return Group(GROUP, PromptId("p"), GroupState.COMPLETE, 0, 3, "8k", ids, trajectories=trajectories)


def test_a_response_cut_by_the_limit_gives_no_answer() -> None:
    assert batches.is_correct(trajectory(0, correct=True))
    assert not batches.is_correct(trajectory(0, correct=True, reason=LENGTH))


@pytest.mark.parametrize(("rule", "expected"), [("zero", 0.0), ("mask", 1.0), ("score", 1.0)])
def test_truncated_zero_takes_the_reward(rule: str, expected: float) -> None:
    stage = StageConfig(truncated=rule)
    assert batches.reward_of(trajectory(0, correct=True, reason=LENGTH), (), stage, 0.0) == expected


def test_group_components_and_the_repeat_penalty_add_up() -> None:
    bonus = [common_pb2.RewardComponent(name="length_k15", raw=0.5, weight=0.2)]
    assert batches.reward_of(trajectory(0, correct=True), bonus, StageConfig(), 0.3) == pytest.approx(1.1)
    repeated = trajectory(1, correct=False, reason=REPEAT)
    assert batches.reward_of(repeated, (), StageConfig(), 0.3) == pytest.approx(-0.3)


def test_facts_count_what_may_train() -> None:
    dropped = trajectory(3, correct=True, state=TrajectoryState.DROPPED)
    members = (
        trajectory(0, correct=True, tokens=2),
        trajectory(1, correct=False, reason=LENGTH, tokens=3, segments=2),
        dropped,
    )
    facts = batches.facts_of([group(*members)], {member.trajectory_id: 1.0 for member in members})
    assert (facts.num_groups, facts.num_trajectories) == (1, 2)
    assert facts.accuracy == 0.5
    assert facts.length == 4.0
    assert facts.clip_ratio == 0.5
    assert facts.continued == 0.5
    assert facts.solved == 0.0


def test_facts_of_nothing_are_zero() -> None:
    assert batches.facts_of([], {}).reward == 0.0


def test_the_batch_names_scored_trajectories_and_the_algorithm() -> None:
    step = RlStepConfig()
    step.algorithm.mirror_descent = MirrorDescentConfig(tau=0.5)
    members = (trajectory(0, correct=True), trajectory(1, correct=True, state=TrajectoryState.DROPPED))
    batch = batches.make_batch(
        Config(), step, StageConfig(name="8k"), [group(*members)], {members[0].trajectory_id: 0.25},
        branch=0, iteration=3, parent_version=4, new_version=5, optimizer_step=6,
    )  # fmt: skip
    assert list(batch.groups[0].trajectory_ids) == [members[0].trajectory_id]
    assert list(batch.groups[0].rewards) == [0.25]
    assert (batch.algorithm.name, batch.algorithm.parameters["tau"]) == ("mirror_descent", 0.5)
    assert batch.reset_optimizer
    assert (batch.parent_version, batch.new_version, batch.optimizer_step) == (4, 5, 6)
