"""Overlap of training with test questions by word n-grams (s1 removes what shares an 8-gram with an evaluation).

Stock phrases of contests ("where m and n are relatively prime positive integers") are 8-grams too; least_share asks
for more than one of them.
"""

from collections.abc import Iterator, Sequence

import xxhash

from crescendo.reward_service.data.questions import Question, Refusal, words_of


class Overlap:
    """`add` the test questions, then ask `refused` for each training question.

    ngram: words; least_share: of a question's n-grams that test questions must have too, 0 for a single one.
    """

    def __init__(self, ngram: int, least_share: float = 0.0) -> None:
        self._ngram = ngram
        self._least_share = least_share
        self._places: dict[int, str] = {}

    @property
    def num_ngrams(self) -> int:
        """Different n-grams of the test questions."""
        return len(self._places)

    def add(self, question: Question) -> None:
        """A test question; one shorter than an n-gram counts as a whole."""
        for value, _ in _ngrams(words_of(question.text), self._ngram):
            self._places.setdefault(value, question.place)

    def refused(self, question: Question) -> Refusal | None:
        """The first n-gram that a test question has too, if there are enough of them."""
        ngrams = list(_ngrams(words_of(question.text), self._ngram))
        shared = [(words, place) for value, words in ngrams if (place := self._places.get(value)) is not None]
        if not shared or len(shared) < self._least_share * len(ngrams):
            return None
        words, place = shared[0]
        return Refusal("test_overlap", f"{' '.join(words)[:160]!r} is in {place} ({len(shared)} of {len(ngrams)})")


def _ngrams(words: Sequence[str], size: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Digest and words of each; the whole where there are fewer words, marked so that it equals only a whole."""
    if len(words) < size:
        yield _digest("\n" + " ".join(words)), words
        return
    for start in range(len(words) - size + 1):
        part = words[start : start + size]
        yield _digest(" ".join(part)), part


def _digest(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())
