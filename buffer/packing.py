"""Between the domain types and what the scripts take and give: updates, trajectories, groups, counters."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from crescendo.buffer.protocol import Update
from crescendo.buffer.records import CODES, STATES, UPDATE, GroupNumbers, address
from crescendo.buffer.segments import pack_segment, unpack_segment
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

DAMAGED = "damaged"
"""Start of the drop reason of a trajectory whose stored bytes are not what was written."""

MAX_OFFSET = 2**31
"""Bound of the rows that carry offsets, far above any response."""


def check_update(update: Update) -> None:
    """Raises RequestError for an update that no state could accept."""
    if update.state not in CODES:
        raise RequestError(
            f"update of {update.trajectory_id} asks for state {update.state}; a worker may ask for {', '.join(CODES)}.",
            field="update.state",
        )
    if not 0 <= update.offset < MAX_OFFSET:
        raise RequestError(
            f"update of {update.trajectory_id} has offset {update.offset}; it must be at least 0 and below "
            f"{MAX_OFFSET}.",
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


def pack_updates(updates: Sequence[Update]) -> tuple[list[GroupId], bytes, list[bytes]]:
    """Updates, checked before, as flush.lua takes them: groups, a row of UPDATE each, segments of those with tokens."""
    groups = GroupNumbers()
    rows, segments = [], []
    for update in updates:
        segment, count, version = update.segment, 0, 0
        if segment is not None and (count := len(segment.token_ids)):
            segments.append(pack_segment(segment))
            version = segment.weight_version
        group, sample = address(update.trajectory_id)
        rows.append(
            UPDATE.pack(
                groups[group],
                sample,
                update.offset,
                count,
                CODES[update.state],
                update.finish_reason,
                update.interrupted,
                version,
            )
        )
    return list(groups), b"".join(rows), segments


def refused_updates(refused: Sequence[tuple[Update, int]], total: int) -> RequestError:
    """The error that names updates whose offsets don't fit; refused: (update, tokens stored or -1)."""
    reasons = [
        f"{update.trajectory_id} is unknown"
        if stored < 0
        else f"{update.trajectory_id} holds {stored} tokens, the update starts at {update.offset}"
        for update, stored in refused
    ]
    return RequestError(
        f"{len(refused)} of {total} updates do not continue their trajectories: {'; '.join(reasons[:4])}.",
        field="update.offset",
        fix="Flush each token once, in order; the other updates of the call were applied.",
    )


def check_components(trajectory: TrajectoryId, components: Sequence[common_pb2.RewardComponent]) -> None:
    """Raises RequestError for a reward that is not finite."""
    for component in components:
        if not math.isfinite(component.raw) or not math.isfinite(component.weight):
            raise RequestError(
                f"reward component {component.name} of {trajectory} has raw {component.raw} and weight "
                f"{component.weight}; both must be finite.",
                field="components",
            )


def pack_components(trajectory: TrajectoryId, components: Sequence[common_pb2.RewardComponent]) -> bytes:
    """Components as one message."""
    return reward_pb2.ScoreResult(item_id=trajectory, components=components).SerializeToString()


def make_trajectory(
    identity: TrajectoryId,
    group: GroupId,
    row: tuple[int, int, int, int, int, int, int, int],
    drop_reason: bytes,
    packed: Sequence[bytes | None],
    prompt_token_ids: IntArray,
) -> Trajectory:
    """A trajectory from what load_trajectories.lua gives of it; row: LOADED; packed: segments, if they were wanted,
    then components.

    One that is damaged in the buffer comes back without tokens, as dropped with the reason: it costs itself only, and
    what is stored of it stays as evidence.
    """
    state, finish_reason, attempts, spans, num_tokens, num_segments, ended, with_segments = row
    num_here = num_segments if with_segments else 0
    segments: tuple[Segment, ...] = ()
    components: tuple[common_pb2.RewardComponent, ...] = ()
    found, reason = STATES[state], drop_reason.decode()
    try:
        segments = tuple([unpack_segment(one) for one in packed[:num_here]])
        if ended and (scored := packed[num_here]):
            components = tuple(reward_pb2.ScoreResult.FromString(scored).components)
    except (BufferStateError, DecodeError) as error:
        segments, found, reason = (), TrajectoryState.DROPPED, f"{DAMAGED}: {error}"
    made: Trajectory = object.__new__(Trajectory)
    # A frozen dataclass sets its fields one by one, in a microsecond or two: a third of what reading one takes.
    fields = {
        "trajectory_id": identity,
        "group_id": group,
        "prompt_token_ids": prompt_token_ids,
        "segments": segments,
        "state": found,
        "finish_reason": finish_reason,
        "components": components,
        "attempts": attempts,
        "spans": spans,
        "drop_reason": reason,
        "unread_tokens": 0 if with_segments else num_tokens,
        "unread_segments": 0 if with_segments else num_segments,
    }
    object.__setattr__(made, "__dict__", fields)
    return made


def make_group(identity: GroupId, row: Sequence[Any], trajectories: Sequence[Trajectory] = ()) -> Group:
    """A group from load_groups.lua's row; raises RequestError when it is unknown."""
    if not row:
        raise RequestError(f"group {identity} is unknown.", field="group_id")
    prompt_id, state, branch, iteration, stage, samples, consumed_iteration, drop_reason, archived = row
    return Group(
        group_id=identity,
        prompt_id=PromptId(prompt_id.decode()),
        state=GroupState(state.decode()),
        branch=branch,
        iteration=iteration,
        stage=stage.decode(),
        trajectory_ids=tuple(trajectory_id(identity, sample) for sample in range(samples)),
        consumed_iteration=consumed_iteration,
        drop_reason=drop_reason.decode(),
        archived=archived.decode(),
        trajectories=tuple(trajectories),
    )


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
