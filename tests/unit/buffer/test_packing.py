"""Between domain types and what the scripts take and give."""

from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.buffer import Update, packing
from crescendo.buffer.ledger import _ITEMS_PER_CALL, _chunks
from crescendo.buffer.segments import pack_segment
from crescendo.buffer.trajectories import BYTES_PER_CALL, BYTES_PER_TOKEN
from crescendo.common.types import Segment, TrajectoryId, TrajectoryState, group_id
from crescendo.proto.v1 import common_pb2

IDENTITY = TrajectoryId("b0-i000001-d0000-s000")
ROW = (5, common_pb2.FINISH_REASON_STOP, 1, 2, 8, 2, 0, 1)  # finished, with its segments


def some_segment(tokens: int = 4) -> Segment:
    return Segment(
        7,
        3,
        "8k",
        1,
        np.arange(tokens, dtype=np.int32),
        np.linspace(-9, 0, tokens, dtype=np.float32),
        np.arange(tokens) % 3 != 1,
    )


@pytest.mark.parametrize("damage", [b"\xff\xff\xff", None, pack_segment(some_segment())[:-1]])
def test_a_damaged_trajectory_costs_itself_only(damage: bytes | None) -> None:
    packed = [pack_segment(some_segment()), damage]
    made = packing.make_trajectory(IDENTITY, group_id(0, 1, 0), ROW, b"", packed, np.ones(2, dtype=np.int32))
    assert (made.state, made.segments) == (TrajectoryState.DROPPED, ())
    assert made.drop_reason.startswith(packing.DAMAGED)
    sound = packing.make_trajectory(IDENTITY, group_id(0, 1, 0), ROW, b"", packed[:1] * 2, np.ones(2, dtype=np.int32))
    assert (sound.state, sound.num_tokens, sound.attempts, sound.spans) == (TrajectoryState.FINISHED, 8, 1, 2)


@given(sizes=st.lists(st.integers(0, 10_000_000), max_size=600))
def test_chunks_lose_nothing_and_stay_small(sizes: list[int]) -> None:
    class Sized:
        def __init__(self, size: int) -> None:
            self.token_ids = range(size)

    updates = [Update(IDENTITY, number, cast("Segment", Sized(size))) for number, size in enumerate(sizes)]
    chunks = list(_chunks(updates))
    assert [one for chunk in chunks for one in chunk] == updates
    for chunk in chunks:
        assert 0 < len(chunk) <= _ITEMS_PER_CALL
        assert sum(BYTES_PER_TOKEN * sizes[one.offset] for one in chunk[:-1]) < BYTES_PER_CALL


def test_counts_name_every_state() -> None:
    counts = packing.state_counts({b"trajectories.leased": b"3", b"groups.open": b"1"})
    assert counts["trajectories.leased"] == 3
    assert counts["groups.abandoned"] == 0
    assert len(counts) == 6 + 5
    totals = packing.open_state_counts({b"1:leased": b"3", b"2:leased": b"4", b"2:pending": b"5"}, 1)
    assert (totals["leased"], totals["pending"]) == (3, 0)
    assert packing.open_state_counts({b"1:leased": b"3", b"2:leased": b"4"}, 2)["leased"] == 7
