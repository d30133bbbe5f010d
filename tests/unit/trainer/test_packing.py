"""Micro-batches: every scored token once, at its place, within the limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.trainer.packing import BLOCK_COST_TOKENS, Sample, pack, split_by_tokens


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    lengths = draw(st.lists(st.integers(2, 60), min_size=1, max_size=40))
    made = []
    for number, length in enumerate(lengths):
        tokens = (np.arange(length) + 1000 * number).astype(np.int32)
        made.append(Sample(tokens, first=draw(st.integers(1, length - 1))))
    return made


@given(samples(), st.integers(16, 400))
def test_every_scored_token_appears_once_after_its_predecessor(given_samples: list[Sample], limit: int) -> None:
    seen: dict[int, list[int]] = {}
    for micro in pack(given_samples, limit):
        for owner, place, target in zip(micro.sample, micro.predict, micro.targets, strict=True):
            assert micro.token_ids[place] == target - 1
            seen.setdefault(int(micro.samples[owner]), []).append(int(target))
    for index, sample in enumerate(given_samples):
        assert seen[index] == sample.token_ids[sample.first :].tolist()


@given(samples(), st.integers(16, 400))
def test_blocks_tile_the_row_and_stay_within_the_limit(given_samples: list[Sample], limit: int) -> None:
    longest = max(sample.num_inputs for sample in given_samples)
    for micro in pack(given_samples, limit):
        end = 0
        for block in micro.blocks:
            assert block.start == end
            end += block.num_tokens
            positions = micro.positions[block.start : end].reshape(block.rows, block.length)
            assert (positions == np.arange(block.length)).all()
        assert end == micro.num_tokens == len(micro.positions)
        assert micro.num_tokens <= max(limit, longest)


@given(samples())
def test_padding_is_cheaper_than_the_calls_it_saves(given_samples: list[Sample]) -> None:
    packed = sum(micro.num_tokens for micro in pack(given_samples, 10_000))
    real = sum(sample.num_inputs for sample in given_samples)
    blocks = sum(len(micro.blocks) for micro in pack(given_samples, 10_000))
    assert real <= packed <= real + BLOCK_COST_TOKENS * blocks


def test_a_sequence_of_one_token_scores_nothing() -> None:
    assert pack([Sample(np.array([3], dtype=np.int32), first=1)], 64) == []


def test_a_sequence_longer_than_the_limit_gets_a_micro_batch_of_its_own() -> None:
    long = Sample(np.arange(100, dtype=np.int32), first=10)
    short = Sample(np.arange(5, dtype=np.int32), first=1)
    assert [micro.num_tokens for micro in pack([short, long], 32)] == [99, 4]


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 5))
def test_ranks_share_all_samples_and_differ_by_at_most_one_of_them(sizes: list[int], parts: int) -> None:
    shares = split_by_tokens(sizes, parts)
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


@pytest.mark.parametrize("parts", [1, 3])
def test_splitting_is_deterministic(parts: int) -> None:
    assert split_by_tokens([5, 5, 5, 1], parts) == split_by_tokens([5, 5, 5, 1], parts)
