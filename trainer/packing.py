"""Samples into micro-batches without padding to a common length.

A micro-batch is one row of tokens: sequences of (nearly) equal length lie together in *blocks*, so that
attention sees [rows, length] tensors without copies and everything else sees one long row. A block pads a
sequence only when that is cheaper than one more attention call. Pure; used by step.py, sft.py and scoring.

Context parallelism divides each row of a block over ranks (`context_part`). Rank c of C takes the chunks c and
2C - 1 - c of 2C equal ones: causal attention costs a late chunk more than an early one, and this evens it out
(Brandon et al., 2023, "Striped Attention", and Megatron-Core do alike).

Shapes: N tokens of a micro-batch, R scored tokens, S samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

# One more attention call costs about as much as running this many tokens through the model (measured on two
# cores: 0.34 M parameters 8, 135 M parameters 4; on a GPU it hardly matters).
BLOCK_COST_TOKENS = 8


@dataclass(frozen=True)
class Sample:
    """A sequence whose tokens from `first` on are scored. token_ids: [L]; first is at least 1."""

    token_ids: npt.NDArray[np.int32]
    first: int

    @property
    def num_inputs(self) -> int:
        """Tokens that go through the model: the last one is only a target."""
        return len(self.token_ids) - 1

    @property
    def num_scored(self) -> int:
        """Tokens that get a log-probability."""
        return len(self.token_ids) - self.first


@dataclass(frozen=True)
class Block:
    """`rows` sequences of `length` positions, at [start, start + rows * length) of the micro-batch."""

    start: int
    rows: int
    length: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass.

    token_ids, positions: [N]; predict: [R] index of the position that predicts a scored token; targets: [R];
    sample: [R] which of `samples` the token belongs to (in order, tokens of a sample in order);
    samples: [S] index into the list that was packed.
    """

    token_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    blocks: tuple[Block, ...]
    predict: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    sample: npt.NDArray[np.int64]
    samples: npt.NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def pack(samples: Sequence[Sample], max_tokens: int, multiple: int = 1) -> list[MicroBatch]:
    """Micro-batches of at most max_tokens positions (more only for a single sequence longer than that).

    Blocks are as long as their longest sequence, rounded up to `multiple`.
    """
    lengths = [-(-sample.num_inputs // multiple) * multiple for sample in samples]
    order = sorted((i for i, s in enumerate(samples) if s.num_inputs > 0), key=lambda i: (-lengths[i], i))
    return [lay_out(samples, lengths, groups) for groups in _micro_batches(lengths, order, max_tokens)]


def pack_alike(shares: Sequence[Sequence[Sample]], max_tokens: int, multiple: int = 1) -> list[list[MicroBatch]]:
    """Each share's micro-batches, as many and as long as the others', filled up with tokens that nothing scores.

    For ranks whose forward passes meet in collectives, as expert parallelism's do.
    """
    packed = [pack(share, max_tokens, multiple) for share in shares]
    count = max(map(len, packed), default=0)
    for micros in packed:
        micros.extend(_empty() for _ in range(count - len(micros)))
    sizes = [max(multiple, *(micros[i].num_tokens for micros in packed)) for i in range(count)]
    return [[_filled(micro, size) for micro, size in zip(micros, sizes, strict=True)] for micros in packed]


def _empty() -> MicroBatch:
    none = np.empty(0, dtype=np.int64)
    return MicroBatch(none, none, (), none, none, none, none)


def _filled(micro: MicroBatch, num_tokens: int) -> MicroBatch:
    missing = num_tokens - micro.num_tokens
    if not missing:
        return micro
    return replace(
        micro,
        token_ids=np.append(micro.token_ids, np.zeros(missing, dtype=np.int64)),
        positions=np.append(micro.positions, np.arange(missing, dtype=np.int64)),
        blocks=(*micro.blocks, Block(micro.num_tokens, 1, missing)),
    )


@dataclass(frozen=True)
class ContextPart:
    """A context rank's part of a micro-batch.

    kept: [N / C] which positions; blocks: tiling them, of rows as long as the rank's share; predict: as in
    MicroBatch, within the part; scored: which of the R scored tokens these are.
    """

    kept: npt.NDArray[np.int64]
    blocks: tuple[Block, ...]
    predict: npt.NDArray[np.int64]
    scored: npt.NDArray[np.int64]


def context_part(micro: MicroBatch, rank: int, parts: int) -> ContextPart:
    """The part of a micro-batch that was packed with a multiple of 2 * parts."""
    owner = np.empty(micro.num_tokens, dtype=np.int64)
    blocks: list[Block] = []
    start = 0
    for block in micro.blocks:
        chunk = np.arange(block.length) // (block.length // (2 * parts))
        of_row = np.minimum(chunk, 2 * parts - 1 - chunk)
        owner[block.start : block.start + block.num_tokens] = np.tile(of_row, block.rows)
        blocks.append(Block(start, block.rows, block.length // parts))
        start += blocks[-1].num_tokens
    kept = np.flatnonzero(owner == rank)
    scored = np.flatnonzero(owner[micro.predict] == rank)
    return ContextPart(kept, tuple(blocks), np.searchsorted(kept, micro.predict[scored]), scored)


def _micro_batches(lengths: Sequence[int], order: list[int], max_tokens: int) -> Iterator[list[list[int]]]:
    """Runs of blocks; a block is a list of sample indices, longest first."""
    current: list[list[int]] = []
    used = 0
    for block in _blocks(lengths, order, max_tokens):
        size = lengths[block[0]] * len(block)
        if current and used + size > max_tokens:
            yield current
            current, used = [], 0
        current.append(block)
        used += size
    if current:
        yield current


def _blocks(lengths: Sequence[int], order: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Greedy: a sequence joins the block while all padding in it costs less than a block of its own."""
    block: list[int] = []
    padding = 0
    for index in order:
        if block:
            length = lengths[block[0]]
            more = length - lengths[index]
            # A quarter keeps blocks small enough to fill micro-batches evenly.
            full = length * (len(block) + 1) > max(max_tokens // 4, length)
            if full or padding + more > BLOCK_COST_TOKENS:
                yield block
                block, padding = [], 0
            else:
                padding += more
        block.append(index)
    if block:
        yield block


def lay_out(samples: Sequence[Sample], lengths: Sequence[int], groups: list[list[int]]) -> MicroBatch:
    """One micro-batch of groups of samples; lengths: what each is padded to, alike within a group."""
    total = sum(lengths[group[0]] * len(group) for group in groups)
    tokens = np.zeros(total, dtype=np.int64)
    positions = np.empty(total, dtype=np.int64)
    predict, targets, owner = [], [], []
    blocks = []
    start = 0
    for group in groups:
        length = lengths[group[0]]
        blocks.append(Block(start, len(group), length))
        positions[start : start + length * len(group)] = np.tile(np.arange(length), len(group))
        for index in group:
            sample = samples[index]
            tokens[start : start + sample.num_inputs] = sample.token_ids[:-1]
            predict.append(np.arange(start + sample.first - 1, start + sample.num_inputs))
            targets.append(sample.token_ids[sample.first :])
            start += length
        owner.extend(group)
    counts = [len(part) for part in predict]
    return MicroBatch(
        token_ids=tokens,
        positions=positions,
        blocks=tuple(blocks),
        predict=np.concatenate(predict),
        targets=np.concatenate(targets).astype(np.int64),
        sample=np.repeat(np.arange(len(owner)), counts),
        samples=np.asarray(owner, dtype=np.int64),
    )


def split_by_tokens(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Indices for each of `parts` ranks, balanced by size: the largest goes to the least loaded. Deterministic."""
    loads = [0] * parts
    chosen: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        part = loads.index(min(loads))
        chosen[part].append(index)
        loads[part] += sizes[index]
    return [sorted(indices) for indices in chosen]
