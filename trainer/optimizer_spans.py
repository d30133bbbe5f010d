"""Where parameters lie in the optimizer's flat buffers: those that are treated alike lie side by side."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, order=True)
class Kind:
    """How the optimizer treats a parameter.

    expert: held by the ranks of its expert; decayed: weight decay applies; cut: each tensor-parallel rank has another
    part; partial: whole on each tensor-parallel rank, which finds a part of its gradient; tied: its gradient is summed
    with that of its copy in another stage; copied: it is that copy.
    """

    expert: bool = False
    decayed: bool = True
    cut: bool = False
    partial: bool = False
    tied: bool = False
    copied: bool = False


@dataclass(frozen=True)
class Span:
    """A stretch of the buffers whose parameters are of one kind."""

    start: int
    stop: int
    kind: Kind


Run = tuple[bool, int, int, list[Span]]


def arrange(
    parameters: Mapping[str, torch.nn.Parameter], kinds: Mapping[str, Kind], multiple: int
) -> tuple[dict[str, tuple[int, int]], list[Run], int]:
    """Each parameter's range, the runs (expert, start, stop, spans) and the buffers' length.

    A run's length is a multiple of `multiple`; what is missing at its end is padding.
    """
    ranges: dict[str, tuple[int, int]] = {}
    runs: list[Run] = []
    offset = 0
    for expert in (False, True):
        start, spans = offset, list[Span]()
        for name in sorted((n for n in parameters if kinds[n].expert is expert), key=lambda n: kinds[n]):
            stop = offset + parameters[name].numel()
            ranges[name] = (offset, stop)
            begin = spans.pop().start if spans and spans[-1].kind == kinds[name] else offset
            spans.append(Span(begin, stop, kinds[name]))
            offset = stop
        if spans:
            offset = start + -(-(offset - start) // multiple) * multiple
            runs.append((expert, start, offset, spans))
    return ranges, runs, offset
