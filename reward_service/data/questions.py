"""What every filter reads, and what it answers."""

import re
from dataclasses import dataclass

# Filters look no further into a question. `check` refuses longer ones long before.
MAX_CHARACTERS = 100_000

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Question:
    """One row of a prompt set. number: of its row in `file`, from 1; golds: any of them is right."""

    file: str
    number: int
    question_id: str
    text: str
    golds: tuple[str, ...]

    @property
    def place(self) -> str:
        """File and row, for people."""
        return f"{self.file} row {self.number}"


@dataclass(frozen=True)
class Refusal:
    """Why a question should go. rule: the short name that a report counts by; reason: for people."""

    rule: str
    reason: str


def words_of(text: str) -> list[str]:
    """Words and numbers in lower case, without punctuation; of the first MAX_CHARACTERS."""
    return _WORD.findall(text[:MAX_CHARACTERS].lower())
