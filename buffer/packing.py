"""Between the domain types and what lies in Redis: hash fields, packed segments, components."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from crescendo.buffer.protocol import Update
from crescendo.common.errors import BufferStateError, RequestError
from crescendo.common.types import (
    Group,
    GroupId,
    GroupState,
    IntArray,
    PromptId,
    Segment,
    Trajectory,
    TrajectoryId,
    TrajectoryState,
    trajectory_id,
)
from crescendo.proto.v1 import common_pb2, reward_pb2

UPDATE_STATES = (TrajectoryState.LEASED, TrajectoryState.PARKED, TrajectoryState.FINISHED)

_Fields = Mapping[bytes, bytes]


def check_update(update: Update) -> None:
    """Raises RequestError for an update that no state could accept."""
    if update.state not in UPDATE_STATES:
        raise RequestError(
            f"update of {update.trajectory_id} asks for state {update.state}; a worker may ask for "
            f"{', '.join(UPDATE_STATES)}.",
            field="update.state",
        )
    if update.offset < 0:
        raise RequestError(
            f"update of {update.trajectory_id} has offset {update.offset}; it must be at least 0.",
            field="update.offset",
        )
    finished = update.state is TrajectoryState.FINISHED
    if finished != (update.finish_reason != common_pb2.FINISH_REASON_UNSPECIFIED):
        raise RequestError(
            f"update of {update.trajectory_id} has state {update.state} and finish reason "
            f"{common_pb2.FinishReason.Name(update.finish_reason)}; a reason goes with `finished` only.",
            field="update.finish_reason",
        )
    if update.interrupted and update.state is not TrajectoryState.PARKED:
        raise RequestError(
            f"update of {update.trajectory_id} is interrupted and {update.state}; only a parked one can be.",
            field="update.interrupted",
        )


def update_arguments(update: Update) -> tuple[str | int | bytes, ...]:
    """An update as flush.lua's eight arguments."""
    check_update(update)
    segment = update.segment
    empty = segment is None or len(segment.token_ids) == 0
    return (
        update.trajectory_id,
        update.offset,
        0 if empty or segment is None else len(segment.token_ids),
        update.state.value,
        update.finish_reason,
        0 if segment is None else segment.weight_version,
        int(update.interrupted),
        b"" if empty or segment is None else segment.to_proto().SerializeToString(),
    )


def refused_updates(refused: Sequence[tuple[str, int]], updates: Sequence[Update]) -> RequestError:
    """The error that names updates whose offsets don't fit; refused: (trajectory id, tokens stored or -1)."""
    offsets = {update.trajectory_id: update.offset for update in updates}
    reasons = [
        f"{identity} is unknown"
        if stored < 0
        else f"{identity} holds {stored} tokens, the update starts at {offsets[TrajectoryId(identity)]}"
        for identity, stored in refused
    ]
    return RequestError(
        f"{len(refused)} of {len(updates)} updates do not continue their trajectories: {'; '.join(reasons[:4])}.",
        field="update.offset",
        fix="Flush each token once, in order; the other updates of the call were applied.",
    )


def pack_components(trajectory: TrajectoryId, components: Sequence[common_pb2.RewardComponent]) -> bytes:
    """Components as one message; raises RequestError for a reward that is not finite."""
    for component in components:
        if not math.isfinite(component.raw) or not math.isfinite(component.weight):
            raise RequestError(
                f"reward component {component.name} of {trajectory} has raw {component.raw} and weight "
                f"{component.weight}; both must be finite.",
                field="components",
            )
    return reward_pb2.ScoreResult(item_id=trajectory, components=components).SerializeToString()


def unpack_segments(identity: TrajectoryId, segments: Sequence[bytes]) -> tuple[Segment, ...]:
    """A trajectory's segments; raises BufferStateError when one is damaged."""
    try:
        return tuple(Segment.from_proto(common_pb2.Segment.FromString(packed)) for packed in segments)
    except (RequestError, DecodeError) as error:
        raise BufferStateError(
            f"trajectory {identity} is damaged in the buffer: {error}",
            field="segments",
            fix="Drop the trajectory; the others are not concerned.",
        ) from error


def make_trajectory(identity: TrajectoryId, row: Sequence[Any], prompt_token_ids: IntArray) -> Trajectory:
    """A trajectory from load_trajectories.lua's row."""
    group, state, finish_reason, attempts, spans, drop_reason, components, segments = row
    return Trajectory(
        trajectory_id=identity,
        group_id=GroupId(group.decode()),
        prompt_token_ids=prompt_token_ids,
        segments=unpack_segments(identity, segments),
        state=TrajectoryState(state.decode()),
        finish_reason=common_pb2.FinishReason.ValueType(finish_reason),
        components=tuple(reward_pb2.ScoreResult.FromString(components).components) if components else (),
        attempts=attempts,
        spans=spans,
        drop_reason=drop_reason.decode(),
    )


def make_group(identity: GroupId, fields: _Fields, trajectories: Sequence[Trajectory] = ()) -> Group:
    """A group from its hash."""
    return Group(
        group_id=identity,
        prompt_id=PromptId(_text(fields, b"prompt_id")),
        state=GroupState(_text(fields, b"state")),
        branch=_number(fields, b"branch"),
        iteration=_number(fields, b"iteration"),
        stage=_text(fields, b"stage"),
        trajectory_ids=member_ids(identity, fields),
        consumed_iteration=_number(fields, b"consumed_iteration", -1),
        drop_reason=_text(fields, b"drop_reason"),
        archived=_text(fields, b"archived"),
        trajectories=tuple(trajectories),
    )


def member_ids(identity: GroupId, fields: _Fields) -> tuple[TrajectoryId, ...]:
    """Ids of a group's trajectories; raises RequestError when the group is unknown."""
    if not fields:
        raise RequestError(f"group {identity} is unknown.", field="group_id")
    return tuple(trajectory_id(identity, sample) for sample in range(_number(fields, b"samples")))


def state_counts(counters: Mapping[bytes, bytes]) -> dict[str, int]:
    """`trajectories.<state>` and `groups.<state>`, each state present."""
    found = {name.decode(): int(value) for name, value in counters.items()}
    names = [f"trajectories.{state.value}" for state in TrajectoryState]
    names += [f"groups.{state.value}" for state in GroupState]
    return {name: found.get(name, 0) for name in names}


def open_state_counts(counters: Mapping[bytes, bytes], iteration: int) -> dict[str, int]:
    """States of trajectories of open groups that were opened in or before the iteration."""
    totals = {state.value: 0 for state in TrajectoryState}
    for name, value in counters.items():
        opened, state = name.decode().split(":")
        if int(opened) <= iteration:
            totals[state] += int(value)
    return totals


def _text(fields: _Fields, name: bytes) -> str:
    return fields.get(name, b"").decode()


def _number(fields: _Fields, name: bytes, default: int = 0) -> int:
    value = fields.get(name)
    return default if value is None else int(value)
