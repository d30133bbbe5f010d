"""From a recorded batch to the sequences of a step: loads trajectories, sets aside what can't train.

A trajectory that is missing, damaged, empty or too long never stops a step: it leaves its group's baseline and
loss, and is reported with its reason. Used by step.py; each rank loads the whole batch, so that all agree on
its size without talking.

Shapes: T response tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crescendo.common.errors import CrescendoError, RequestError
from crescendo.common.types import Trajectory, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import common_pb2, trainer_pb2
from crescendo.trainer.algorithms.advantages import NEGLIGIBLE, group_advantages
from crescendo.trainer.packing import Sample


class TrajectorySource(Protocol):
    """What a step needs of the buffer."""

    async def load_trajectories(self, ids: Sequence[TrajectoryId]) -> list[Trajectory]:
        """Trajectories with their tokens."""
        ...


@dataclass(frozen=True)
class Limits:
    """What the model can take: positions a sequence, token ids below vocab_size."""

    max_positions: int
    vocab_size: int


@dataclass(frozen=True)
class Experience:
    """One trajectory that trains.

    sample: prompt and response; behaviour: [T] stored log-probabilities; trained: [T] policy tokens under the
    loss mask; old: [T] of older weights than the iterate.
    """

    sample: Sample
    advantage: float
    behaviour: npt.NDArray[np.float32]
    trained: npt.NDArray[np.bool_]
    old: npt.NDArray[np.bool_]

    @property
    def num_trained(self) -> int:
        """Tokens in the loss."""
        return int(self.trained.sum())


@dataclass
class Prepared:
    """A batch ready to train. num_masked: cut responses left out by `truncated: mask`."""

    experiences: list[Experience] = field(default_factory=list)
    set_aside: list[trainer_pb2.SetAside] = field(default_factory=list)
    num_trajectories: int = 0
    num_masked: int = 0


async def load(source: TrajectorySource, ids: Sequence[str]) -> tuple[dict[str, Trajectory], dict[str, str]]:
    """Trajectories by id, and reasons for those that cannot be read.

    Retryable errors (the buffer is away) are raised; a damaged trajectory only costs itself.
    """
    wanted = [TrajectoryId(each) for each in ids]
    try:
        return {t.trajectory_id: t for t in await source.load_trajectories(wanted)}, {}
    except CrescendoError as error:
        if error.retryable:
            raise
    found: dict[str, Trajectory] = {}
    reasons: dict[str, str] = {}
    for each in wanted:
        try:
            found |= {t.trajectory_id: t for t in await source.load_trajectories([each])}
        except CrescendoError as error:
            if error.retryable:
                raise
            reasons[each] = f"unreadable: {error.message}"
    return found, reasons


def teaches(group: trainer_pb2.TrainGroup) -> bool:
    """Whether a group's rewards differ. If not, its advantages are zero whoever is left out: nothing to load."""
    rewards = [reward for reward in group.rewards if np.isfinite(reward)]
    return len(rewards) < len(group.rewards) or (bool(rewards) and max(rewards) - min(rewards) > NEGLIGIBLE)


def prepare(
    batch: trainer_pb2.TrainBatch,
    found: Mapping[str, Trajectory],
    reasons: Mapping[str, str],
    limits: Limits,
    *,
    normalize_std: bool,
) -> Prepared:
    """Advantages and arrays of the trajectories that train. Raises RequestError for a malformed batch.

    found, reasons: what `load` gave for the groups that teach.
    """
    if batch.truncated not in ("zero", "mask", ""):
        raise RequestError(f"truncated is {batch.truncated!r}; it must be zero or mask.", field="truncated")
    prepared = Prepared()
    on_policy = batch.on_policy_version or batch.parent_version
    for group in batch.groups:
        if len(group.trajectory_ids) != len(group.rewards):
            raise RequestError(
                f"group {group.group_id} has {len(group.trajectory_ids)} trajectories and {len(group.rewards)} "
                "rewards; it needs one each.",
                field="groups.rewards",
            )
        if not teaches(group):
            prepared.num_trajectories += len(group.trajectory_ids)
            continue
        members, rewards = [], []
        for trajectory_id, reward in zip(group.trajectory_ids, group.rewards, strict=True):
            trajectory = found.get(trajectory_id)
            reason = reasons.get(trajectory_id) or _unfit(trajectory, reward, limits)
            if reason or trajectory is None:
                prepared.set_aside.append(trainer_pb2.SetAside(trajectory_id=trajectory_id, reason=reason))
                continue
            members.append(trajectory)
            rewards.append(reward)
        _add_group(prepared, members, rewards, batch, on_policy, normalize_std)
    return prepared


def _add_group(
    prepared: Prepared,
    members: list[Trajectory],
    rewards: list[float],
    batch: trainer_pb2.TrainBatch,
    on_policy: int,
    normalize_std: bool,
) -> None:
    cut = np.array([t.finish_reason == common_pb2.FINISH_REASON_LENGTH for t in members], dtype=np.bool_)
    counted = ~cut if batch.truncated == "mask" else np.ones(len(members), dtype=np.bool_)
    advantages = group_advantages(np.asarray(rewards, dtype=np.float64), counted, normalize_std=normalize_std)
    prepared.num_trajectories += len(members)
    prepared.num_masked += int((~counted).sum())
    for trajectory, advantage in zip(members, advantages, strict=True):
        if abs(advantage) > NEGLIGIBLE:
            experience = _experience(trajectory, float(advantage), on_policy, batch.old_segments == "mask")
            if experience.num_trained:
                prepared.experiences.append(experience)


def _experience(trajectory: Trajectory, advantage: float, on_policy: int, mask_old: bool) -> Experience:
    segments = trajectory.segments
    old = _joined([np.full(len(s.token_ids), s.weight_version != on_policy) for s in segments])
    trained = _joined([s.loss_mask & (not s.tool_turn) for s in segments])
    if mask_old:
        trained = trained & ~old
    tokens = np.concatenate([trajectory.prompt_token_ids, *(s.token_ids for s in segments)])
    return Experience(
        sample=Sample(tokens.astype(np.int32, copy=False), first=len(trajectory.prompt_token_ids)),
        advantage=advantage,
        behaviour=trajectory.log_probs,
        trained=trained,
        old=old,
    )


def _joined(parts: list[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _unfit(trajectory: Trajectory | None, reward: float, limits: Limits) -> str:
    """Why a trajectory cannot train; empty if it can."""
    if trajectory is None:
        return "missing: the buffer does not have it"
    if trajectory.state == TrajectoryState.DROPPED:
        return f"dropped: {trajectory.drop_reason}"
    if not np.isfinite(reward):
        return f"reward is {reward}, not a finite number"
    prompt, response = trajectory.prompt_token_ids, trajectory.token_ids
    if not len(prompt):
        return "empty prompt"
    if not len(response):
        return "empty response"
    if len(prompt) + len(response) > limits.max_positions:
        return f"too long: {len(prompt) + len(response)} tokens, the model has {limits.max_positions} positions"
    for name, tokens in (("prompt", prompt), ("response", response)):
        # Read as unsigned, a negative id is a huge one: one pass instead of two.
        if int(tokens.view(np.uint32).max()) >= limits.vocab_size:
            return f"{name} holds a token outside the vocabulary of {limits.vocab_size}"
    return ""
