"""Log-probabilities of given tokens from hidden states, without keeping a full logits tensor.

The vocabulary may be cut over tensor-parallel ranks. Positions are handled in chunks so that at most
MAX_LOGITS values exist at once; with one chunk the probabilities are kept for the backward pass, with more
they are computed again. The weight's gradient is summed in float32 whatever its type: tens of chunks would lose
bits in bfloat16.

Shapes: R scored positions, H hidden width, V vocabulary rows of this rank.
"""

from typing import Any

import torch
import torch.distributed as dist

# By device: 128 MiB in float32, and 512 MiB where larger products are faster.
MAX_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 27}


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(hidden @ weight.T * scale)[targets] and the entropy of that distribution."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        valid: int,
        first: int,
        scale: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        step = max(1, MAX_LOGITS[hidden.device.type] // max(1, valid))
        log_probs, entropies, normalizers = [], [], []
        kept: torch.Tensor | None = None
        for start in range(0, len(hidden), step):
            logits = torch.mm(hidden[start : start + step], weight[:valid].T).float().mul_(scale)
            chosen = targets[start : start + step]
            log_prob, entropy, normalizer, probs = _chunk(logits, chosen, first, group)
            log_probs.append(log_prob)
            entropies.append(entropy)
            normalizers.append(normalizer)
            kept = probs if len(hidden) <= step else None
        if not log_probs:
            log_probs = entropies = normalizers = [hidden.new_zeros(0, dtype=torch.float32)]
        ctx.save_for_backward(hidden, weight, targets, torch.cat(normalizers), *([] if kept is None else [kept]))
        ctx.settings = (valid, first, scale, group, step)
        entropy_all = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_all)
        return torch.cat(log_probs), entropy_all

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, normalizers, *kept = ctx.saved_tensors
        valid, first, scale, group, step = ctx.settings
        grad = grads[0]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            if kept:
                probs = kept[0].clone()
            else:
                logits = torch.mm(hidden[part], weight[:valid].T).float().mul_(scale)
                probs = logits.sub_(normalizers[part, None]).exp_()
            # d log p(target) / d logits = onehot(target) - p
            d_logits = probs.mul_(-grad[part, None])
            local, mine = _local(targets[part], first, valid)
            d_logits.scatter_add_(1, local[:, None], (grad[part] * mine)[:, None])
            d_logits = d_logits.mul_(scale).to(hidden.dtype)
            torch.mm(d_logits, weight[:valid], out=grad_hidden[part])
            if weight.dtype is torch.float32:
                grad_weight[:valid].addmm_(d_logits.T, hidden[part])
            else:
                grad_weight[:valid].add_(torch.mm(d_logits.T, hidden[part]))
        if group is not None:
            dist.all_reduce(grad_hidden, group=group)
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None, None


def _local(targets: torch.Tensor, first: int, valid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row of each target on this rank (clamped) and whether it lies here."""
    local = targets - first
    mine = (local >= 0) & (local < valid)
    return local.clamp(0, max(0, valid - 1)), mine


def _chunk(
    logits: torch.Tensor, targets: torch.Tensor, first: int, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits: [r, V], overwritten. Returns log-probabilities, entropies, log normalizers, probabilities."""
    local, mine = _local(targets, first, logits.shape[1])
    highest = logits.amax(dim=1)
    if group is not None:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    logits.sub_(highest[:, None])
    target = logits.gather(1, local[:, None])[:, 0] * mine
    probs = logits.exp()
    # sums: of exp(l), of exp(l) * l, and the target's l; one message for all three.
    sums = torch.stack((probs.sum(dim=1), torch.linalg.vecdot(probs, logits), target))
    if group is not None:
        dist.all_reduce(sums, group=group)
    total, weighted, target = sums
    log_total = total.log()
    probs.div_(total[:, None])
    return target - log_total, log_total - weighted / total, log_total + highest, probs


def token_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float,
    valid_rows: int,
    first_row: int,
    group: dist.ProcessGroup | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target and entropy at each position, both [R] float32.

    hidden: [R, H]; weight: [V, H], whose rows from valid_rows on are padding; targets: [R] token ids;
    first_row: the token id of this rank's row 0. The entropy carries no gradient.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, valid_rows, first_row, 1.0 / temperature, group
    )
    return result
