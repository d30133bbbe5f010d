"""Domain types: what the services mean when they say trajectory, segment or group.

Wire messages (crescendo.proto.v1) are used as they are; the classes here add arrays and states.
Shapes: T is a number of response tokens.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

import numpy as np
import numpy.typing as npt

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2

RunId = NewType("RunId", str)
PromptId = NewType("PromptId", str)
GroupId = NewType("GroupId", str)
TrajectoryId = NewType("TrajectoryId", str)
WeightVersion = NewType("WeightVersion", int)

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class TrajectoryState(StrEnum):
    """pending -> leased -> parked | finished -> scored; parked -> leased; any -> dropped."""

    PENDING = "pending"
    LEASED = "leased"
    PARKED = "parked"
    FINISHED = "finished"
    SCORED = "scored"
    DROPPED = "dropped"


class GroupState(StrEnum):
    """open -> complete -> consumed | dropped | abandoned."""

    OPEN = "open"
    COMPLETE = "complete"
    CONSUMED = "consumed"
    DROPPED = "dropped"
    ABANDONED = "abandoned"


def group_id(branch: int, iteration: int, draw: int) -> GroupId:
    """The id that makes opening a group idempotent."""
    return GroupId(f"b{branch}-i{iteration:06d}-d{draw:04d}")


def trajectory_id(group: GroupId, sample: int) -> TrajectoryId:
    """The id of sample number `sample` of a group."""
    return TrajectoryId(f"{group}-s{sample:03d}")


@dataclass(frozen=True)
class Segment:
    """The part of a trajectory made by one weight version in one iteration.

    token_ids, log_probs, loss_mask: [T]; log_probs are of the distribution sampled from.
    """

    weight_version: int
    iteration: int
    stage: str
    branch: int
    token_ids: IntArray
    log_probs: FloatArray
    loss_mask: BoolArray
    tool_turn: bool = False
    worker_id: str = ""  # the engine that made it

    def __post_init__(self) -> None:
        lengths = (len(self.token_ids), len(self.log_probs), len(self.loss_mask))
        if len(set(lengths)) != 1:
            raise RequestError(
                f"segment arrays token_ids, log_probs, loss_mask have lengths {lengths}; they must be equal.",
                field="segment",
            )
        if not bool(np.isfinite(self.log_probs).all()):
            raise RequestError("segment.log_probs holds NaN or infinity.", field="segment.log_probs")

    def to_proto(self) -> common_pb2.Segment:
        """Packs the arrays: little-endian int32, float32, one bit a token; an all-true mask is empty."""
        mask = b"" if bool(self.loss_mask.all()) else np.packbits(self.loss_mask, bitorder="little").tobytes()
        return common_pb2.Segment(
            weight_version=self.weight_version,
            iteration=self.iteration,
            stage=self.stage,
            branch=self.branch,
            token_ids=self.token_ids.astype("<i4", copy=False).tobytes(),
            log_probs=self.log_probs.astype("<f4", copy=False).tobytes(),
            loss_mask=mask,
            num_tokens=len(self.token_ids),
            tool_turn=self.tool_turn,
            worker_id=self.worker_id,
        )

    @classmethod
    def from_proto(cls, packed: common_pb2.Segment) -> "Segment":
        """Unpacks; raises RequestError when the arrays' lengths differ."""
        count = packed.num_tokens
        if len(packed.token_ids) != 4 * count or len(packed.log_probs) != 4 * count:
            raise RequestError(
                f"segment of {count} tokens has {len(packed.token_ids)} and {len(packed.log_probs)} bytes; "
                f"both must be {4 * count}.",
                field="segment",
            )
        mask = np.ones(count, dtype=np.bool_)
        if packed.loss_mask:
            if len(packed.loss_mask) != (count + 7) // 8:
                raise RequestError(f"segment.loss_mask has {len(packed.loss_mask)} bytes for {count} tokens.")
            bits = np.frombuffer(packed.loss_mask, dtype=np.uint8)
            mask = np.unpackbits(bits, count=count, bitorder="little").astype(np.bool_)
        return cls(
            weight_version=packed.weight_version,
            iteration=packed.iteration,
            stage=packed.stage,
            branch=packed.branch,
            token_ids=np.frombuffer(packed.token_ids, dtype="<i4"),
            log_probs=np.frombuffer(packed.log_probs, dtype="<f4"),
            loss_mask=mask,
            tool_turn=packed.tool_turn,
            worker_id=packed.worker_id,
        )


@dataclass(frozen=True)
class Trajectory:
    """One sample of a prompt, with everything that made it.

    unread_tokens, unread_segments: how many of them the buffer holds and whoever loaded the trajectory did not ask for.
    """

    trajectory_id: TrajectoryId
    group_id: GroupId
    prompt_token_ids: IntArray
    segments: tuple[Segment, ...]
    state: TrajectoryState
    finish_reason: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_UNSPECIFIED
    components: tuple[common_pb2.RewardComponent, ...] = ()
    attempts: int = 0
    spans: int = 0
    drop_reason: str = ""
    unread_tokens: int = 0
    unread_segments: int = 0

    @property
    def token_ids(self) -> IntArray:
        """Response tokens of all segments, [T]."""
        parts = [segment.token_ids for segment in self.segments]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)

    @property
    def log_probs(self) -> FloatArray:
        """Behaviour log-probabilities of all segments, [T]."""
        parts = [segment.log_probs for segment in self.segments]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    @property
    def num_tokens(self) -> int:
        """Length of the response so far."""
        return self.unread_tokens + sum(len(segment.token_ids) for segment in self.segments)

    @property
    def num_segments(self) -> int:
        """In how many parts it was generated."""
        return self.unread_segments + len(self.segments)

    @property
    def reward(self) -> float:
        """Sum of weight times raw over the components."""
        return sum(component.weight * component.raw for component in self.components)


@dataclass(frozen=True)
class Group:
    """The k samples of one prompt in one iteration."""

    group_id: GroupId
    prompt_id: PromptId
    state: GroupState
    branch: int
    iteration: int
    stage: str
    trajectory_ids: tuple[TrajectoryId, ...]
    consumed_iteration: int = -1
    drop_reason: str = ""
    archived: str = ""  # the archive file that holds its payload; then there are no trajectories here
    trajectories: tuple[Trajectory, ...] = field(default=())
