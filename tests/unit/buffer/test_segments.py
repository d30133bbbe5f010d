"""A segment's bytes."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.buffer.segments import pack_segment, unpack_segment
from crescendo.common.errors import BufferStateError
from crescendo.common.types import Segment


@given(
    tokens=st.lists(st.integers(0, 2**31 - 1), max_size=40),
    masked=st.integers(0, 2**40 - 1),
    version=st.integers(0, 2**40),
    stage=st.text(max_size=8),
    tool_turn=st.booleans(),
)
def test_segments_come_back_as_they_were(
    tokens: list[int], masked: int, version: int, stage: str, tool_turn: bool
) -> None:
    mask = np.array([bool(masked >> i & 1) for i in range(len(tokens))], dtype=np.bool_)
    log_probs = np.linspace(-9, 0, len(tokens), dtype=np.float32)
    made = Segment(version, 3, stage, 1, np.array(tokens, dtype=np.int32), log_probs, mask, tool_turn)
    back = unpack_segment(pack_segment(made))
    assert (back.weight_version, back.stage, back.iteration, back.branch) == (version, stage, 3, 1)
    assert back.tool_turn is tool_turn
    np.testing.assert_array_equal(back.token_ids, made.token_ids)
    np.testing.assert_array_equal(back.log_probs, made.log_probs)
    np.testing.assert_array_equal(back.loss_mask, made.loss_mask)
    assert (back.token_ids.dtype, back.log_probs.dtype, back.loss_mask.dtype) == (np.int32, np.float32, np.bool_)


def segment(count: int) -> Segment:
    return Segment(
        1, 1, "8k", 0, np.arange(count, dtype=np.int32), np.zeros(count, dtype=np.float32), np.ones(count, np.bool_)
    )


def test_nine_bytes_a_token_and_a_short_header() -> None:
    assert len(pack_segment(segment(1000))) == 8 * 1000 + 44, "a mask of ones takes none"


def test_arrays_of_other_layouts_are_packed_alike() -> None:
    strided = Segment(
        1, 1, "8k", 0, np.arange(8, dtype=np.int32)[::2], np.zeros(8, dtype=np.float32)[::2], np.ones(4, np.bool_)
    )
    assert unpack_segment(pack_segment(strided)).token_ids.tolist() == [0, 2, 4, 6]


@given(position=st.integers(0, 163), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(position: int, bit: int) -> None:
    packed = bytearray(pack_segment(segment(15)))
    packed[position] ^= 1 << bit
    with pytest.raises(BufferStateError):
        unpack_segment(bytes(packed))


@pytest.mark.parametrize("cut", [0, 1, 39, 60])
def test_a_truncated_segment_is_found(cut: int) -> None:
    with pytest.raises(BufferStateError):
        unpack_segment(pack_segment(segment(15))[:cut])


def test_a_missing_segment_is_found() -> None:
    with pytest.raises(BufferStateError, match="missing"):
        unpack_segment(None)


def test_a_segment_that_was_read_can_be_copied_and_sent() -> None:
    back = unpack_segment(pack_segment(segment(3)))
    for again in (copy.copy(back), pickle.loads(pickle.dumps(back)), dataclasses.replace(back, stage="16k")):
        assert (again.token_ids.tolist(), again.loss_mask.tolist()) == ([0, 1, 2], [True] * 3)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = back.nothing_of_the_kind  # type: ignore[attr-defined]
