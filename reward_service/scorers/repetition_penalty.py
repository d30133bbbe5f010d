"""repetition_penalty: a penalty for n-grams that occurred before, dense over tokens or as one share.

Dense, as "Demystifying Long Chain-of-Thought" trains it: -penalty on every token of a repeated n-gram (N = 40), each
token once, discounted by gamma_repetition = 0.99, apart from correctness with gamma 1. A token's return is then
G_t = p_t + gamma * G_(t+1). A trajectory trains on one number here (`TrainGroup.rewards`), so the scorer gives the mean
of G_t over the tokens: what a sequence-level advantage sees of it. `token_penalties` and `token_returns` are the dense
form for an algorithm that trains on values by token.

Scalar, the authors' other form: (1 - unique / total n-grams) * -penalty. It is bounded by the penalty.

N-grams are over token ids where the request brings them, else over words without regard to case.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer
from crescendo.reward_service.typed_options import option

LOW = -100.0
_ID_BYTES = 4


@dataclass(frozen=True)
class RepetitionOptions:
    """Options of repetition_penalty."""

    form: str = option(
        "dense",
        "dense: mean over tokens of the discounted return of token penalties; share: of n-grams that are repeats",
        choices=("dense", "share"),
    )
    ngram: int = option(40, "N, length of an n-gram", unit="tokens", at_least=1, source="arXiv 2502.03373")
    penalty: float = option(
        0.05, "of a token in a repeated n-gram, or of a response of repeats only", at_least=0, at_most=1
    )
    gamma: float = option(0.99, "dense: discount of the penalties, 0 to 1", at_least=0, at_most=0.999)


def score(sample: Sample, options: RepetitionOptions) -> Outcome:
    """0 without a repeat; negative with them. share: at least -penalty; dense: at least -penalty / (1 - gamma)."""
    data = _packed(sample)
    repeated = repeated_tokens(data, options.ngram)
    num_tokens, num_repeated = len(repeated), sum(repeated)
    if not num_repeated:
        return Outcome(0.0, detail=f"no repeated {options.ngram}-gram in {num_tokens} tokens")
    if options.form == "share":
        raw = -options.penalty * repeated_share(data, options.ngram)
    else:
        returns = token_returns(token_penalties(repeated, options.penalty), options.gamma)
        raw = sum(returns) / num_tokens
    return Outcome(max(LOW, raw), detail=f"{num_repeated} of {num_tokens} tokens are in repeated n-grams")


def repeated_tokens(data: bytes, ngram: int) -> list[bool]:
    """For each token, whether it lies in an n-gram that occurred before. data: packed 4-byte ids."""
    num_tokens = len(data) // _ID_BYTES
    marks = [0] * (num_tokens + 1)
    seen: set[bytes] = set()
    for start in range(num_tokens - ngram + 1):
        gram = data[start * _ID_BYTES : (start + ngram) * _ID_BYTES]
        if gram in seen:
            marks[start] += 1
            marks[start + ngram] -= 1
        else:
            seen.add(gram)
    return [depth > 0 for depth in accumulate(marks[:-1])]


def repeated_share(data: bytes, ngram: int) -> float:
    """1 - unique / total n-grams; 0 for a response shorter than one."""
    total = len(data) // _ID_BYTES - ngram + 1
    if total <= 0:
        return 0.0
    unique = {data[start * _ID_BYTES : (start + ngram) * _ID_BYTES] for start in range(total)}
    return 1.0 - len(unique) / total


def token_penalties(repeated: Sequence[bool], penalty: float) -> list[float]:
    """p_t: -penalty for each repeated token."""
    return [-penalty if is_repeated else 0.0 for is_repeated in repeated]


def token_returns(penalties: Sequence[float], gamma: float) -> list[float]:
    """G_t = p_t + gamma * G_(t+1), one a token."""
    backwards = accumulate(reversed(penalties), lambda later, now: now + gamma * later)
    return list(backwards)[::-1]


def _packed(sample: Sample) -> bytes:
    if sample.token_ids:
        return sample.token_ids[: len(sample.token_ids) // _ID_BYTES * _ID_BYTES]
    numbers: dict[str, int] = {}
    words = (numbers.setdefault(word, len(numbers)) for word in sample.text.lower().split())
    return array("i", words).tobytes()


SCORER = Scorer(
    name="repetition_penalty",
    source="Demystifying Long Chain-of-Thought Reasoning (arXiv 2502.03373), appendix C.2 and the authors' code",
    low=LOW,
    high=0.0,
    options=RepetitionOptions,
    score=score,
    reads_tokens=True,
)
