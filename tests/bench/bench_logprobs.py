"""Peak memory of log-probabilities, forward and backward, in chunks against a full logits tensor.

    ours       trainer/megatron/log_probs.py: logits of some positions at a time, computed again in the backward pass
    baseline   hidden @ weight.T, log_softmax, gather

Both on the same hidden states, at 8,192 positions and a vocabulary of 151,936; bytes are what PyTorch's allocator
hands out beyond the inputs, as its profiler accounts them. The target for `ratio` is at most 0.1. The baseline takes
about 16 GB there; with less at hand it runs on fewer positions and is scaled up, which `details` then says: all but
the weight's gradient grows with positions.

`python -m tests.bench.bench_logprobs` prints one JSON line.
"""

import argparse
from collections.abc import Callable

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from crescendo.trainer.megatron.log_probs import token_log_probs
from tests.bench.harness import Measured, progress, report

Scores = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    rows = len(weight)
    return token_log_probs(hidden, weight, targets, temperature=1.0, valid_rows=rows, first_row=0, group=None)[0]


def full(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def peak_bytes(scores: Scores, tokens: int, vocabulary: int, width: int) -> tuple[int, torch.Tensor]:
    """The most that was allocated at once, and the scores, for comparison."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width).requires_grad_()
    weight = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = scores(hidden, weight, targets)
        result.sum().backward()  # type: ignore[no-untyped-call]
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, result.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=128)
    given = parser.parse_args()
    fewer = given.tokens
    while 3.2 * fewer * given.vocabulary * 4 + 2**30 > psutil.virtual_memory().available:
        fewer //= 2
    progress(f"full logits of {fewer} positions")
    baseline, wanted = peak_bytes(full, fewer, given.vocabulary, given.width)
    progress(f"chunks of {given.tokens} positions")
    mine, found = peak_bytes(ours, given.tokens, given.vocabulary, given.width)
    if fewer == given.tokens:
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    gradient = given.vocabulary * given.width * 4
    details = {"tokens": given.tokens, "vocabulary": given.vocabulary, "width": given.width, "baseline_tokens": fewer}
    whole = (baseline - gradient) * given.tokens / fewer + gradient
    report(Measured("logprobs", mine / 2**20, whole / 2**20, "MiB at the peak", details))


if __name__ == "__main__":
    main()
