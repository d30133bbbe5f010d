"""language_consistency: the share of words written in the scripts of the target language.

Words are told apart by script (Latin, Han, Kana, Hangul, Cyrillic, Arabic, Devanagari, ...), not by vocabulary:
languages that share a script are not told apart. Code, mathematics and addresses are left out first: they are
written in Latin and Greek letters whatever the language.
"""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer
from crescendo.reward_service.scorers.prose import prose_of
from crescendo.reward_service.scorers.spans import SPANS, span_of
from crescendo.reward_service.typed_options import option

_LATIN = frozenset({"LATIN"})
_CYRILLIC = frozenset({"CYRILLIC"})
_ARABIC = frozenset({"ARABIC"})
_DEVANAGARI = frozenset({"DEVANAGARI"})

# First word of a letter's Unicode name, by language (ISO 639-1).
SCRIPTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("cs", "da", "de", "en", "es", "fi", "fr", "hu", "id", "it", "nl", "no"), _LATIN),
    **dict.fromkeys(("pl", "pt", "ro", "sv", "sw", "tr", "vi"), _LATIN),
    **dict.fromkeys(("bg", "kk", "ru", "uk"), _CYRILLIC),
    **dict.fromkeys(("ar", "fa", "ur"), _ARABIC),
    **dict.fromkeys(("hi", "mr", "ne"), _DEVANAGARI),
    "bn": frozenset({"BENGALI"}),
    "el": frozenset({"GREEK"}),
    "he": frozenset({"HEBREW"}),
    "hy": frozenset({"ARMENIAN"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}),
    "ka": frozenset({"GEORGIAN"}),
    "ko": frozenset({"HANGUL", "CJK"}),
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}),
    "zh": frozenset({"CJK", "BOPOMOFO"}),
}
# Written without spaces: each letter counts as a word, as one run would outweigh nothing and hide mixing.
_UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI", "BOPOMOFO"})
# What joins a word rather than ending it, besides combining marks: apostrophes, hyphen, soft hyphen, joiners.
_JOINERS = frozenset("'\u2019-\u00ad\u200c\u200d")


@dataclass(frozen=True)
class LanguageOptions:
    """Options of language_consistency."""

    language: str = option("en", "target language", choices=tuple(sorted(SCRIPTS)))
    span: str = option("all", "what is read: the whole response, its thinking, or what follows that", choices=SPANS)
    prose_only: bool = option(True, "leave out code, mathematics and addresses")


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    """A letter's script; `join` for what continues a word; empty for what ends one."""
    if character.isalpha():
        return unicodedata.name(character, "").split(" ", 1)[0]
    return "join" if character in _JOINERS or unicodedata.category(character)[0] == "M" else ""


def score(sample: Sample, options: LanguageOptions) -> Outcome:
    """Words in the target language over words; 1 without any word. A word counts by its script."""
    text = span_of(sample.text, options.span)
    matching, total = count_words(prose_of(text) if options.prose_only else text, SCRIPTS[options.language])
    return Outcome(matching / total if total else 1.0, detail=f"{matching} of {total} words")


def count_words(text: str, wanted: frozenset[str]) -> tuple[int, int]:
    """Words in the wanted scripts, and all words. Full-width and stylized letters count as their plain forms."""
    total = matching = 0
    inside = ""
    for character in unicodedata.normalize("NFKC", text):
        script = _script(character)
        if script == "join":
            continue
        if script and (script != inside or script in _UNSPACED):
            total += 1
            matching += script in wanted
        inside = script
    return matching, total


SCORER = Scorer(
    name="language_consistency",
    source="DeepSeek-R1, section 2.3.2: words in the target language over words in the chain of thought",
    low=0.0,
    high=1.0,
    options=LanguageOptions,
    score=score,
)
