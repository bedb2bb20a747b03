"""Which language a text is in: a fast guess accepts the wanted languages, a careful model judges the rest.

resiliparse's `detect_fast` does 37,000 texts a second but mislabels 4.5 % of English ones; py3langid's Bayes model is
right on 97.7 % of paragraphs in 39 languages at 1,700 a second. So the first may only accept, never reject.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

FAST_CUTOFF = 1200
"""resiliparse's own limit on its out-of-place rank distance, beyond which it says `unknown`."""
CAREFUL_CHARACTERS = 1000
"""py3langid reads this much; its accuracy does not grow beyond."""
SAMPLE_CHARACTERS = 2000
"""Texts need not be longer than this for `identify`."""


@dataclass(frozen=True)
class Language:
    """An ISO 639-1 code and the model's probability; 1.0 where the fast guess found a wanted language."""

    code: str
    probability: float


@cache
def _careful_model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    # Normalised, since the filter bounds a probability.
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(texts: Sequence[str], wanted: Collection[str]) -> list[Language]:
    """The language of each text (its first SAMPLE_CHARACTERS)."""
    from resiliparse.parse.lang import detect_fast

    found = []
    for text in texts:
        guess, _ = detect_fast(text, FAST_CUTOFF)
        if guess in wanted:
            found.append(Language(guess, 1.0))
        else:
            code, probability = _careful_model().classify(text[:CAREFUL_CHARACTERS])
            found.append(Language(str(code), float(probability)))
    return found
