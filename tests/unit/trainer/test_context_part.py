"""Parts of a micro-batch for context-parallel ranks, and micro-batches made alike for expert-parallel ones."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crescendo.trainer.packing import Sample, context_part, pack, pack_alike


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    lengths = draw(st.lists(st.integers(2, 60), max_size=20))
    return [Sample(np.arange(n, dtype=np.int32), first=draw(st.integers(1, n - 1))) for n in lengths]


@given(samples(), st.integers(16, 200), st.integers(2, 4))
def test_context_ranks_share_every_position_evenly_and_score_every_token_once(
    given_samples: list[Sample], limit: int, parts: int
) -> None:
    for micro in pack(given_samples, limit, multiple=2 * parts):
        shares = [context_part(micro, rank, parts) for rank in range(parts)]
        assert {len(share.kept) for share in shares} == {micro.num_tokens // parts}
        assert sorted(np.concatenate([share.kept for share in shares])) == list(range(micro.num_tokens))
        assert sorted(np.concatenate([share.scored for share in shares])) == list(range(len(micro.targets)))
        for share in shares:
            assert (share.kept[share.predict] == micro.predict[share.scored]).all()
            assert sum(block.num_tokens for block in share.blocks) == len(share.kept)


@given(samples(), st.integers(2, 4))
def test_a_context_rank_has_an_early_and_a_late_chunk_of_each_sequence(given_samples: list[Sample], parts: int) -> None:
    for micro in pack(given_samples, 200, multiple=2 * parts):
        for rank in range(parts):
            share = context_part(micro, rank, parts)
            for block in share.blocks:
                width = block.length // 2
                rows = micro.positions[share.kept][block.start : block.start + block.num_tokens]
                for row in rows.reshape(block.rows, block.length):
                    late = (2 * parts - 1 - rank) * width
                    assert row.tolist() == [*range(rank * width, (rank + 1) * width), *range(late, late + width)]


@given(st.lists(samples(), min_size=2, max_size=4), st.integers(16, 200), st.sampled_from((1, 4)))
def test_micro_batches_made_alike_score_the_same_tokens(shares: list[list[Sample]], limit: int, multiple: int) -> None:
    alike = pack_alike(shares, limit, multiple)
    assert len({tuple(micro.num_tokens for micro in micros) for micros in alike}) == 1
    for share, micros in zip(shares, alike, strict=True):
        real = [micro for micro in micros if len(micro.samples)]
        for made, plain in zip(real, pack(share, limit, multiple), strict=True):
            assert (made.predict == plain.predict).all()
            assert (made.token_ids[: plain.num_tokens] == plain.token_ids).all()
        for micro in micros:
            ends = [block.start + block.num_tokens for block in micro.blocks]
            assert [block.start for block in micro.blocks] == [0, *ends[:-1]]
            assert ends[-1] == micro.num_tokens
