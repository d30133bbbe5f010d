"""Rows of numbers between Python and the scripts: one struct call for many rows costs less than one argument a number.

Each format here is the one that the script named beside it packs or unpacks (tests/unit/buffer/test_records.py compares
them). A trajectory is addressed by its group and its sample number.
"""

import functools
import struct
from collections.abc import Iterable, Sequence

from crescendo.common.types import GroupId, TrajectoryId, TrajectoryState

UPDATE = struct.Struct("<HHIIBBBQ")
"""flush.lua: number of its group in the call, sample, offset, tokens, state, finish reason, interrupted, version."""

MEMBER = struct.Struct("<HH")
"""score.lua: number of its group in the call, sample."""

NUMBER = struct.Struct("<H")
"""load_trajectories.lua: sample."""

CLAIMED = struct.Struct("<HIIII")
"""claim.lua: sample, attempts, spans, tokens, segments."""

TAKEN = struct.Struct("<HBIIII")
"""claim_finished.lua: sample, finish reason, attempts, spans, tokens, segments."""

LOADED = struct.Struct("<BBIIIIBB")
"""load_trajectories.lua: state, finish reason, attempts, spans, tokens, segments, 1 if components follow, 1 if
segments do."""

NOBODY = 2**16 - 1
"""A sample number that no group has."""

MAX_SAMPLES = 1024
"""Samples a group: a script unpacks a column of them onto Lua's stack."""

STATES = (
    TrajectoryState.DROPPED,  # 0 is never stored
    TrajectoryState.PENDING,
    TrajectoryState.LEASED,
    TrajectoryState.PARKED,
    TrajectoryState.PARKED,  # resting: until a later iteration
    TrajectoryState.FINISHED,
    TrajectoryState.FINISHED,  # scoring: handed out
    TrajectoryState.SCORED,
    TrajectoryState.DROPPED,
)
"""A state's number in a record -> what the buffer's users call it (prelude_records.lua, NAMES)."""

LEASED, SCORING = 2, 6
"""Numbers of the states of a trajectory that is claimed, and of one that is handed out to be scored."""

CODES = {TrajectoryState.LEASED: 2, TrajectoryState.PARKED: 3, TrajectoryState.FINISHED: 5}
"""States that a worker may ask for, by number."""


@functools.lru_cache(maxsize=2**14)  # of what is under way: each id comes with every flush and score
def address(trajectory: TrajectoryId) -> tuple[GroupId, int]:
    """Group and sample of a trajectory id; an id of another form names a sample that no group has."""
    group, _, sample = trajectory.rpartition("-s")
    if sample.isdecimal() and len(sample) < 6 and (number := int(sample)) < NOBODY:
        return GroupId(group), number
    return GroupId(trajectory), NOBODY


def by_group(trajectories: Iterable[TrajectoryId]) -> list[tuple[GroupId, list[int]]]:
    """Samples of each group, in order; a group that comes again later is listed again."""
    runs: list[tuple[GroupId, list[int]]] = []
    for trajectory in trajectories:
        group, sample = address(trajectory)
        if not runs or runs[-1][0] != group:
            runs.append((group, []))
        runs[-1][1].append(sample)
    return runs


class GroupNumbers(dict[GroupId, int]):
    """Group id -> its number in a call, in order of first use."""

    def __missing__(self, group: GroupId) -> int:
        number = self[group] = len(self)
        return number


def pack_numbers(samples: Sequence[int]) -> bytes:
    """Sample numbers as rows of NUMBER."""
    return struct.pack(f"<{len(samples)}H", *samples)
