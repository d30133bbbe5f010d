"""Rules that a prompt set must keep: lengths, and one meaning for each id and each question.

What concerns single cells (missing, empty, of the wrong type, not Unicode) is refused when a row is read; see
controller/data/fields.py, whose rules a run applies too.
"""

import hashlib
from dataclasses import dataclass

from crescendo.reward_service.data.questions import Question, Refusal


@dataclass(frozen=True)
class CheckLimits:
    """Lengths in characters."""

    question: int = 20_000
    answer: int = 2_000


class Checks:
    """Call `refused` with every question in order; it remembers ids and questions, as digests."""

    def __init__(self, limits: CheckLimits) -> None:
        self._limits = limits
        self._ids: dict[bytes, int] = {}
        self._questions: dict[bytes, tuple[int, bytes]] = {}

    def refused(self, question: Question) -> Refusal | None:
        """The first rule that it breaks."""
        if len(question.text) > self._limits.question:
            return Refusal(
                "length", f"question has {len(question.text)} characters; the limit is {self._limits.question}"
            )
        longest = max(map(len, question.golds))
        if longest > self._limits.answer:
            return Refusal("length", f"answer has {longest} characters; the limit is {self._limits.answer}")
        if "\0" in question.text or any("\0" in gold for gold in question.golds):
            return Refusal("characters", "question or answer holds a NUL character")
        earlier = self._ids.setdefault(_digest(question.question_id), question.number)
        if earlier != question.number:
            return Refusal("duplicate_id", f"id {question.question_id[:80]!r} was used by row {earlier}")
        return self._repeated(question)

    def _repeated(self, question: Question) -> Refusal | None:
        answer = _digest("\0".join(question.golds))
        key = _digest(" ".join(question.text.split()))
        earlier, earlier_answer = self._questions.setdefault(key, (question.number, answer))
        if earlier == question.number:
            return None
        if answer != earlier_answer:
            return Refusal("conflict", f"row {earlier} asks the same and has another answer")
        return Refusal("duplicate_question", f"row {earlier} asks the same")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
