"""language_consistency: the share of words written in the scripts of the target language."""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer
from crescendo.reward_service.typed_options import option

# First word of a letter's Unicode name, by language. Languages that share a script are not told apart.
_SCRIPTS: dict[str, frozenset[str]] = {
    "ar": frozenset({"ARABIC"}),
    "el": frozenset({"GREEK"}),
    "en": frozenset({"LATIN"}),
    "he": frozenset({"HEBREW"}),
    "hi": frozenset({"DEVANAGARI"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}),
    "ko": frozenset({"HANGUL", "CJK"}),
    "ru": frozenset({"CYRILLIC"}),
    "th": frozenset({"THAI"}),
    "zh": frozenset({"CJK", "BOPOMOFO"}),
}
# Written without spaces: each letter counts as a word, as one run would outweigh nothing and hide mixing.
_UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI", "BOPOMOFO"})


@dataclass(frozen=True)
class LanguageOptions:
    """Options of language_consistency."""

    language: str = option("en", "target language", choices=tuple(sorted(_SCRIPTS)))


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ", 1)[0] if character.isalpha() else ""


def score(sample: Sample, options: LanguageOptions) -> Outcome:
    """Words in the target language over words; 1 without any word. A word counts by its script."""
    wanted = _SCRIPTS[options.language]
    total = matching = 0
    inside = ""
    for character in sample.text:
        script = _script(character)
        if script and (script != inside or script in _UNSPACED):
            total += 1
            matching += script in wanted
        inside = script
    share = matching / total if total else 1.0
    return Outcome(share, detail=f"{matching} of {total} words")


SCORER = Scorer(
    name="language_consistency",
    source="DeepSeek-R1, section 2.3.2: words in the target language over words in the chain of thought",
    low=0.0,
    high=1.0,
    options=LanguageOptions,
    score=score,
)
