"""language_consistency: scripts of many languages, prose told from code and mathematics, spans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.reward_service.scorers import Sample, language_consistency
from crescendo.reward_service.scorers.language_consistency import LanguageOptions
from crescendo.reward_service.scorers.prose import prose_of
from crescendo.reward_service.scorers.spans import span_of


def share(text: str, language: str, **options: object) -> float:
    return language_consistency.score(Sample(text), LanguageOptions(language=language, **options)).raw  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("We add the numbers; don't we?", "en"),
        ("Größe über naïve façade", "de"),
        ("我们把数字加起来", "zh"),
        ("数を足します、カタカナも", "ja"),
        ("숫자를 더합니다", "ko"),
        ("Мы складываем числа", "ru"),
        ("نجمع الأرقام", "ar"),
        ("हम संख्याओं को जोड़ते हैं", "hi"),
        ("Προσθέτουμε τους αριθμούς", "el"),
        ("אנחנו מוסיפים", "he"),
        ("เราบวกตัวเลข", "th"),
        ("ＦＵＬＬ width", "en"),
    ],
)
def test_a_text_in_its_own_language(text: str, language: str) -> None:
    assert share(text, language) == 1.0
    other = "ru" if language != "ru" else "en"
    assert share(text, other) == 0.0


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("so 我们 add", "en", 2 / 4),
        ("दो words", "hi", 1 / 2),  # vowel signs join a word
        ("don't stop", "en", 1.0),
        ("да no", "ru", 1 / 2),
        ("", "en", 1.0),
        ("1 + 1 = 2", "ru", 1.0),
    ],
)
def test_mixed_texts_by_hand(text: str, language: str, expected: float) -> None:
    assert share(text, language) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "我们 ```python\nfor number in numbers: print(number)\n```",
        "我们 `numbers`",
        "我们 $x + \\alpha y$",
        "我们 $$\\frac{velocity}{time}$$",
        "我们 \\(x\\) \\[y = ax\\]",
        "我们 <think></think>",
        "我们 https://example.org/path",
        "我们 \\boxed",
    ],
)
def test_code_and_mathematics_are_not_language(text: str) -> None:
    assert share(text, "zh") == 1.0
    if "$" in text or "`" in text:
        assert share(text, "zh", prose_only=False) < 1.0


def test_money_is_not_mathematics() -> None:
    assert "and she paid" in prose_of("it costs $5 and she paid $6")
    assert prose_of("an `open mark").split() == ["an", "open", "mark"]


def test_spans() -> None:
    text = "<think>думаем</think>the sum"
    assert share(text, "ru", span="thinking") == 1.0
    assert share(text, "en", span="summary") == 1.0
    assert share(text, "en") == pytest.approx(2 / 3)
    assert span_of("no tags", "summary") == ""
    assert span_of("no tags", "thinking") == "no tags"
    assert span_of(b"a</think>b</think>c", "summary") == b"c"
    assert span_of(b"<think>a</think>c", "thinking") == b"a"


@given(st.text(alphabet="$`~\\()[] \nab1", max_size=300))
def test_prose_never_raises_and_never_grows(text: str) -> None:
    assert len(prose_of(text)) <= 2 * len(text) + 1


@pytest.mark.parametrize("mark", ["$", "`", "```", "$$", "\\(", "$a", "http://", "<a"])
def test_prose_is_linear(mark: str) -> None:
    prose_of(mark * (300_000 // len(mark)))
