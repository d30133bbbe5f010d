"""Near duplicates by MinHash: candidates from a locality-sensitive index, then their exact similarity.

Similarity is Jaccard's, of the sets of word n-grams. DeepScaleR compares sentence embeddings and k1.5 does not say
how it removes duplicates; this needs no model, and numbers count as words, so that `3 + 4` and `3 + 5` differ.
"""

from dataclasses import dataclass

import numpy as np
import xxhash

from crescendo.common.errors import ConfigError
from crescendo.reward_service.data.questions import Question, Refusal, words_of

MAX_WORDS = 5_000
_MAX_CANDIDATES = 64


@dataclass(frozen=True)
class _Kept:
    place: str
    golds: tuple[str, ...]
    shingles: "np.ndarray[tuple[int], np.dtype[np.uint64]]"


class NearDuplicates:
    """Call `refused` with every question in order: what is kept is what later ones are compared with.

    threshold: similarity from which two questions count as one; ngram: words in a shingle; permutations: of
    MinHash; same_answer: only questions with equal answers can be duplicates.
    """

    def __init__(
        self, threshold: float = 0.8, ngram: int = 3, permutations: int = 128, *, same_answer: bool = False
    ) -> None:
        # Only here: datasketch loads scipy and the clients of its storages.
        from datasketch import MinHash, MinHashLSH

        if not 0 < threshold <= 1:
            raise ConfigError(f"threshold is {threshold}; it must be above 0 and at most 1.", field="threshold")
        self._threshold = threshold
        self._ngram = ngram
        self._same_answer = same_answer
        # A little below, because MinHash estimates: the exact similarity decides.
        self._index = MinHashLSH(threshold=max(0.05, threshold - 0.1), num_perm=permutations)
        self._empty = MinHash(num_perm=permutations, hashfunc=xxhash.xxh32_intdigest)
        self._kept: list[_Kept] = []

    def refused(self, question: Question) -> Refusal | None:
        """The earlier question that it nearly repeats."""
        words = words_of(question.text)[:MAX_WORDS]
        size = min(self._ngram, max(1, len(words)))
        shingles = [" ".join(words[start : start + size]).encode() for start in range(max(1, len(words) - size + 1))]
        sketch = self._empty.copy()
        sketch.update_batch(shingles)
        hashes = np.unique(np.fromiter((xxhash.xxh3_64_intdigest(one) for one in shingles), np.uint64))
        for number in sorted(self._index.query(sketch))[:_MAX_CANDIDATES]:
            earlier = self._kept[number]
            if self._same_answer and earlier.golds != question.golds:
                continue
            similarity = _jaccard(hashes, earlier.shingles)
            if similarity >= self._threshold:
                other = "" if earlier.golds == question.golds else ", with another answer"
                return Refusal("near_duplicate", f"{similarity:.0%} like {earlier.place}{other}")
        self._index.insert(len(self._kept), sketch)
        self._kept.append(_Kept(question.place, question.golds, hashes))
        return None


def _jaccard(
    one: "np.ndarray[tuple[int], np.dtype[np.uint64]]", other: "np.ndarray[tuple[int], np.dtype[np.uint64]]"
) -> float:
    shared = np.intersect1d(one, other, assume_unique=True).size
    return float(shared / (one.size + other.size - shared))
