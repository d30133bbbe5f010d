"""Frames survive any way of cutting the stream, and long ones are refused before they are stored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.reward_service.workers.frames import FrameReader, FrameTooLongError, frame


@given(st.lists(st.binary(max_size=200), max_size=8), st.lists(st.integers(1, 50), max_size=40))
def test_any_cut_gives_the_same_payloads(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    reader = FrameReader(limit=200)
    found: list[bytes] = []
    at = 0
    for size in [*cuts, len(stream)]:
        reader.feed(stream[at : at + size])
        found += reader.payloads()
        at += size
    assert found == payloads


def test_a_long_frame_is_refused_by_its_announcement() -> None:
    reader = FrameReader(limit=10)
    reader.feed(frame(b"ok") + frame(b"x" * 11)[:4])
    payloads = reader.payloads()
    assert next(payloads) == b"ok"
    with pytest.raises(FrameTooLongError, match="11 bytes"):
        next(payloads)
