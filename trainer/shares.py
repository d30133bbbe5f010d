"""This data-parallel rank's share of a mini-batch, in micro-batches. Used by step.py and sft.py."""

from collections.abc import Sequence
from typing import TypeVar

from crescendo.trainer import packing
from crescendo.trainer.megatron.model import PolicyModel
from crescendo.trainer.packing import MicroBatch, Sample

T = TypeVar("T")


def share_of(
    members: Sequence[T], samples: Sequence[Sample], model: PolicyModel, max_tokens: int
) -> tuple[list[T], list[MicroBatch]]:
    """The members that this rank trains, balanced by tokens, and the micro-batches of their samples.

    samples: one a member. Ranks whose experts meet get equally many micro-batches of equal size.
    """
    at, multiple = model.at, model.length_multiple
    parts = packing.split_by_tokens([sample.num_inputs for sample in samples], at.data_parallel)
    mine = parts[at.data_rank]
    if at.expert_parallel > 1:
        shares = [[samples[i] for i in part] for part in parts]
        micros = packing.pack_alike(shares, max_tokens, multiple)[at.data_rank]
    else:
        micros = packing.pack([samples[i] for i in mine], max_tokens, multiple)
    return [members[i] for i in mine], micros
