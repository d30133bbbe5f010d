"""From complete groups to the batch that a step trains on. Pure.

The batch is what the redo log records: with the checkpoint below it, it determines the step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crescendo.common.config.layouts import micro_batch_tokens
from crescendo.common.config.rl import AlgorithmConfig, LearningRateConfig, RlStepConfig, StageConfig
from crescendo.common.config.schema import Config
from crescendo.common.types import Group, Trajectory, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import common_pb2, reward_pb2, trainer_pb2

Bonus = Mapping[TrajectoryId, Sequence[common_pb2.RewardComponent]]


@dataclass(frozen=True)
class BatchFacts:
    """What a batch tells about the policy. Lengths are in tokens."""

    num_groups: int
    num_trajectories: int
    reward: float
    accuracy: float
    length: float
    clip_ratio: float
    repeat_ratio: float
    solved: float  # share of groups with every answer right
    continued: float  # share of trajectories with more than one segment


def is_correct(trajectory: Trajectory) -> bool:
    """The chain's first scorer judges the answer; a response cut by the limit did not give one."""
    if not trajectory.components or trajectory.finish_reason != common_pb2.FINISH_REASON_STOP:
        return False
    return trajectory.components[0].verdict == common_pb2.VERDICT_CORRECT


def reward_of(
    trajectory: Trajectory, bonus: Sequence[common_pb2.RewardComponent], stage: StageConfig, repeat_penalty: float
) -> float:
    """The scalar that a trajectory trains on: chain, group-wise components, truncation and repetition rules."""
    if trajectory.finish_reason == common_pb2.FINISH_REASON_LENGTH and stage.truncated == "zero":
        return 0.0
    total = trajectory.reward + sum(component.weight * component.raw for component in bonus)
    return total - (repeat_penalty if trajectory.finish_reason == common_pb2.FINISH_REASON_REPEAT else 0.0)


def scored(group: Group) -> list[Trajectory]:
    """The trajectories of a group that may train: scored, not dropped."""
    return [trajectory for trajectory in group.trajectories if trajectory.state == TrajectoryState.SCORED]


def facts_of(groups: Sequence[Group], rewards: Mapping[TrajectoryId, float]) -> BatchFacts:
    """Means over the trajectories of a batch."""
    trajectories = [trajectory for group in groups for trajectory in scored(group)]
    count = max(1, len(trajectories))
    reasons = [trajectory.finish_reason for trajectory in trajectories]
    return BatchFacts(
        num_groups=len(groups),
        num_trajectories=len(trajectories),
        reward=sum(rewards[trajectory.trajectory_id] for trajectory in trajectories) / count,
        accuracy=sum(map(is_correct, trajectories)) / count,
        length=sum(trajectory.num_tokens for trajectory in trajectories) / count,
        clip_ratio=reasons.count(common_pb2.FINISH_REASON_LENGTH) / count,
        repeat_ratio=reasons.count(common_pb2.FINISH_REASON_REPEAT) / count,
        solved=sum(all(map(is_correct, scored(group))) for group in groups) / max(1, len(groups)),
        continued=sum(trajectory.num_segments > 1 for trajectory in trajectories) / count,
    )


def group_message(group: Group) -> reward_pb2.GroupFacts:
    """What group-wise scorers are told about a group."""
    members = [
        reward_pb2.GroupMember(
            item_id=trajectory.trajectory_id,
            num_tokens=trajectory.num_tokens,
            correct=is_correct(trajectory),
            finish_reason=trajectory.finish_reason,
        )
        for trajectory in scored(group)
    ]
    return reward_pb2.GroupFacts(group_id=group.group_id, members=members)


def algorithm_message(config: AlgorithmConfig, max_response_tokens: int) -> trainer_pb2.Algorithm:
    """The algorithm's block as the trainer reads it: numbers and options by field name.

    constant_tokens is what Dr. GRPO divides each sequence's sum by: the longest response possible.
    """
    block = vars(getattr(config, config.name))
    numbers = {key: float(value) for key, value in block.items() if isinstance(value, int | float)}
    numbers["constant_tokens"] = float(max_response_tokens)
    options = {key: value for key, value in block.items() if isinstance(value, str)}
    return trainer_pb2.Algorithm(name=config.name, parameters=numbers, options=options)


def learning_rate_message(rate: LearningRateConfig, total_steps: int = 0) -> trainer_pb2.LearningRate:
    """A schedule on the wire. decay_steps 0 means up to the last of total_steps, where that is known."""
    message = trainer_pb2.LearningRate(**vars(rate))
    if not message.decay_steps and total_steps:
        message.decay_steps = max(1, total_steps - rate.warmup_steps - rate.hold_steps)
    return message


def make_batch(
    config: Config,
    step: RlStepConfig,
    stage: StageConfig,
    groups: Sequence[Group],
    rewards: Mapping[TrajectoryId, float],
    *,
    branch: int,
    iteration: int,
    parent_version: int,
    new_version: int,
    optimizer_step: int,
) -> trainer_pb2.TrainBatch:
    """The batch of one iteration."""
    algorithm = step.algorithm
    return trainer_pb2.TrainBatch(
        branch=branch,
        iteration=iteration,
        stage=stage.name,
        parent_version=parent_version,
        new_version=new_version,
        groups=[
            trainer_pb2.TrainGroup(
                group_id=group.group_id,
                trajectory_ids=[trajectory.trajectory_id for trajectory in scored(group)],
                rewards=[rewards[trajectory.trajectory_id] for trajectory in scored(group)],
            )
            for group in groups
        ],
        algorithm=algorithm_message(algorithm, stage.max_response_tokens),
        learning_rate=learning_rate_message(step.learning_rate),
        optimizer=trainer_pb2.AdamW(**vars(step.optimizer)),
        optimizer_step=optimizer_step,
        num_mini_batches=algorithm.num_mini_batches,
        max_tokens_per_micro_batch=micro_batch_tokens(config, stage),
        reset_optimizer=algorithm.reset_optimizer,
        truncated="mask" if stage.truncated == "mask" else "zero",  # the trainer takes rewards as they are
        importance_cap=algorithm.importance_cap,
        old_segments=algorithm.old_segments,
        seed=(config.run.seed << 32) + iteration,
        temperature=stage.sampling.temperature,
        on_policy_version=parent_version,
    )
