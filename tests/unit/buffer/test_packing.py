"""Between domain types and stored bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.buffer import packing
from crescendo.buffer.ledger import _chunks
from crescendo.common.errors import BufferStateError
from crescendo.common.types import Segment, TrajectoryId
from crescendo.proto.v1 import common_pb2

IDENTITY = TrajectoryId("b0-i000001-d0000-s000")


@given(
    tokens=st.lists(st.integers(0, 2**31 - 1), max_size=40),
    masked=st.integers(0, 2**40 - 1),
    version=st.integers(0, 2**40),
    stage=st.text(max_size=8),
)
def test_segments_come_back_as_they_were(tokens: list[int], masked: int, version: int, stage: str) -> None:
    mask = np.array([bool(masked >> i & 1) for i in range(len(tokens))], dtype=np.bool_)
    log_probs = np.linspace(-9, 0, len(tokens), dtype=np.float32)
    made = Segment(version, 3, stage, 1, np.array(tokens, dtype=np.int32), log_probs, mask)
    (back,) = packing.unpack_segments(IDENTITY, [made.to_proto().SerializeToString()])
    assert (back.weight_version, back.stage, back.iteration, back.branch) == (version, stage, 3, 1)
    np.testing.assert_array_equal(back.token_ids, made.token_ids)
    np.testing.assert_array_equal(back.log_probs, made.log_probs)
    np.testing.assert_array_equal(back.loss_mask, made.loss_mask)


def test_damaged_segments_are_named() -> None:
    short = common_pb2.Segment(num_tokens=4, token_ids=b"\0" * 16, log_probs=b"\0" * 12)
    for packed in (short.SerializeToString(), b"\xff\xff\xff"):
        with pytest.raises(BufferStateError, match=IDENTITY):
            packing.unpack_segments(IDENTITY, [packed])


@given(sizes=st.lists(st.integers(0, 10_000_000), max_size=600))
def test_chunks_lose_nothing_and_stay_small(sizes: list[int]) -> None:
    class Sized:
        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

    rows = [(number, Sized(size)) for number, size in enumerate(sizes)]
    chunks = list(_chunks(rows))
    assert [word for chunk in chunks for word in chunk] == [word for row in rows for word in row]
    for chunk in chunks:
        assert len(chunk) <= 2 * 256
        assert sum(len(word) for word in chunk[1:-2:2]) < 8 * 2**20


def test_counts_name_every_state() -> None:
    counts = packing.state_counts({b"trajectories.leased": b"3", b"groups.open": b"1"})
    assert counts["trajectories.leased"] == 3
    assert counts["groups.abandoned"] == 0
    assert len(counts) == 6 + 5
    totals = packing.open_state_counts({b"1:leased": b"3", b"2:leased": b"4", b"2:pending": b"5"}, 1)
    assert (totals["leased"], totals["pending"]) == (3, 0)
    assert packing.open_state_counts({b"1:leased": b"3", b"2:leased": b"4"}, 2)["leased"] == 7
