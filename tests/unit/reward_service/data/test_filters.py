"""Which questions go and why, and that no text takes a filter long."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.errors import ConfigError
from crescendo.reward_service.data import (
    CheckLimits,
    Checks,
    NearDuplicates,
    Overlap,
    Question,
    Refusal,
    answer_refused,
    kind_refused,
)

HOSTILE = {
    "a megabyte of one letter": "a" * 1_000_000,
    "a megabyte of spaces": " " * 1_000_000 + "prove that",
    "a megabyte of newlines": "\n" * 1_000_000,
    "labels without end": "(A) " * 250_000,
    "labels in order": "(A) (B) " * 120_000,
    "open typesetting": r"\textbf{(" * 100_000,
    "open drawings": "[asy]" * 200_000,
    "drawings in drawings": "[asy][/asy]" * 90_000,
    "sentences that begin to prove": "Prove. " * 140_000,
    "line labels": "A.\n" * 300_000,
    "nested quantifier bait": ("true " * 3 + "or ") * 50_000,
    "exponents": "^1" * 500_000,
    "commands": "\\" * 1_000_000,
    "surrogates": "\ud800" * 300_000,
}


def question(text: str, *golds: str, number: int = 1, name: str = "") -> Question:
    return Question("train.jsonl", number, name or f"q{number}", text, golds or ("1",))


def rule(found: Refusal | None) -> str:
    return found.rule if found else ""


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("What is 3 + 4? (A) 6 (B) 7 (C) 8", "7", "multiple_choice"),
        (r"Find x. $\textbf{(A)}\ 1 \qquad \textbf{(B) } 2 \qquad \textbf{(C)}\ 3$", "3", "multiple_choice"),
        (r"Find x. $\text{(A) } 496\quad \text{(B) } 500\quad \text{(C) } 512$", "512", "multiple_choice"),
        ("Pick one.\n\nA. red\n\nB. blue\n\nC. green", "B", "multiple_choice"),
        ("Pick one: A) red B) blue C) green", "B", "multiple_choice"),
        ("Pick one.\n**A.** red\n**B.** blue\n**C.** green", "B", "multiple_choice"),
        ("Which of the following is prime?", "C", "multiple_choice"),
        ("Let P(A) = 0.5, P(B) = 0.2 and P(C) = 0.1. Find P(A and B).", "0.1", ""),
        ("[asy] MP('A',(A),(B),(C)); label('(A) (B) (C)'); [/asy] Find the area.", "3", ""),
        ("A cat, a dog and a cow meet. (a) How many legs? (b) How many tails? (c) How many ears?", "12", ""),
        ("Triangle ABC has AB = 3. Which is longer, AB or BC?", "AB", ""),
        ("Is 7 prime?", "Yes", "true_false"),
        ("True or false: 7 is prime.", "1", "true_false"),
        ("7 is prime, true or false?", "1", "true_false"),
        ("In a true or false test Ann answered 20 questions. How many were right?", "12", ""),
        ("Prove that 7 is prime.", "7", "proof"),
        ("Let $p$ be prime. Show that $p^2$ is not.", "p", "proof"),
        ("Find all n, and prove that there are no others.", "3", "proof"),
        ("Ann improves that record by showing that she can.", "3", ""),
        ("Find n.", r"n = 3 $\blacksquare$", "proof"),
        ("Evaluate 1 + 1.", "2", ""),
    ],
)
def test_kinds(text: str, gold: str, expected: str) -> None:
    assert rule(kind_refused(question(text, gold))) == expected


@pytest.mark.parametrize(
    ("gold", "is_refused"),
    [
        ("12", False), (r"\frac{3\pi}{4}", False), ("x^2+y", False), (r"2\sqrt{3}", False), ("a+b+c", True),
        ("2^{10}", True), ("x^(2)", True), ("2^3^4", True), ("x^12", True),
    ],
)  # fmt: skip
def test_answers_that_deepscaler_grades(gold: str, is_refused: bool) -> None:
    assert bool(answer_refused(gold)) is is_refused


def test_check_names_the_rule_and_the_earlier_row() -> None:
    checks = Checks(CheckLimits(question=20, answer=5))
    assert checks.refused(question("What is 1 + 1?", "2", number=1)) is None
    cases = [
        (question("What is 1 + 2?", "3", number=2, name="q1"), "duplicate_id", "row 1"),
        (question("What  is 1 + 1?\n", "2", number=3), "duplicate_question", "row 1"),
        (question("What is 1 + 1?", "3", number=4), "conflict", "row 1"),
        (question("x" * 21, "3", number=5), "length", "21 characters"),
        (question("x", "123456", number=6), "length", "6 characters"),
        (question("a\0b", "1", number=7), "characters", "NUL"),
    ]
    for given_question, expected, shown in cases:
        found = checks.refused(given_question)
        assert rule(found) == expected
        assert found is not None
        assert shown in found.reason


def test_overlap_needs_as_many_words_in_a_row_as_asked() -> None:
    overlap = Overlap(ngram=5)
    overlap.add(Question("test.jsonl", 9, "t", "The quick brown fox jumps over the lazy dog.", ("1",)))
    overlap.add(Question("test.jsonl", 10, "u", "What is 1 + 1?", ("2",)))
    found = overlap.refused(question("A QUICK brown fox; jumps over a fence"))
    assert rule(found) == "test_overlap"
    assert found is not None
    assert "'quick brown fox jumps over' is in test.jsonl row 9" in found.reason
    assert overlap.refused(question("a quick brown fox jumps high")) is None
    assert rule(overlap.refused(question("what is 1, 1"))) == "test_overlap"
    assert overlap.refused(question("what is 1 and 1")) is None
    strict = Overlap(ngram=5, least_share=0.9)
    strict.add(Question("test.jsonl", 9, "t", "The quick brown fox jumps over the lazy dog.", ("1",)))
    assert strict.refused(question("a quick brown fox jumps over a fence")) is None
    assert rule(strict.refused(question("the quick brown fox jumps over the lazy dog"))) == "test_overlap"


def test_near_duplicates_are_told_by_words_and_numbers() -> None:
    story = "Tom has {} apples and buys {} more at the market in town. How many apples does Tom have now?"
    near = NearDuplicates(threshold=0.6)
    assert near.refused(question(story.format(3, 4), "7", number=1)) is None
    assert rule(near.refused(question(story.format(3, 4).upper(), "7", number=2))) == "near_duplicate"
    found = near.refused(question(story.format(3, 5), "8", number=3))
    assert found is not None
    assert "train.jsonl row 1, with another answer" in found.reason
    assert near.refused(question("Ann reads 12 pages a day. How many does she read in a week?", "84", number=4)) is None
    same = NearDuplicates(threshold=0.6, same_answer=True)
    assert same.refused(question(story.format(3, 4), "7", number=1)) is None
    assert same.refused(question(story.format(3, 5), "8", number=2)) is None
    with pytest.raises(ConfigError, match="threshold"):
        NearDuplicates(threshold=0.0)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=20))
def test_a_second_pass_finds_nothing_new(texts: list[str]) -> None:
    def kept(items: list[str]) -> list[str]:
        near, checks = NearDuplicates(permutations=16), Checks(CheckLimits())
        numbered = [question(text, number=number) for number, text in enumerate(items, 1)]
        return [q.text for q in numbered if checks.refused(q) is None and near.refused(q) is None]

    once = kept(texts)
    assert kept(once) == once


def _overlap(one: Question) -> object:
    overlap = Overlap(8)
    overlap.add(one)
    return overlap.refused(one)


FILTERS: dict[str, Callable[[Question], object]] = {
    "kinds": kind_refused,
    "answers": lambda one: answer_refused(one.text),
    "near duplicates": lambda one: NearDuplicates().refused(one),
    "overlap": _overlap,
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_text_costs_little(name: str) -> None:
    text = HOSTILE[name]
    plain = text.encode("utf-8", "replace").decode()
    NearDuplicates()  # loads the library
    for judge in FILTERS.values():
        started_s = time.process_time()
        judge(question(plain, "A"))
        assert time.process_time() - started_s < 2.0
