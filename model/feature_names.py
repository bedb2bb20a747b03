"""What is measured of a document, and the characters and phrases that the measures are defined by."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.words import code_point_classes

FEATURES = (
    "characters",
    "words",
    "mean_word_length",
    "longest_word",
    "hash_ratio",
    "ellipsis_ratio",
    "bullet_line_share",
    "ellipsis_line_share",
    "alphabetic_word_share",
    "stop_words",
    "duplicate_line_share",
    "duplicate_line_char_share",
    "duplicate_paragraph_share",
    "duplicate_paragraph_char_share",
    "top_2gram_share",
    "top_3gram_share",
    "top_4gram_share",
    "duplicate_5gram_share",
    "duplicate_6gram_share",
    "duplicate_7gram_share",
    "duplicate_8gram_share",
    "duplicate_9gram_share",
    "duplicate_10gram_share",
    "c4_sentences",
    "c4_line_share",
    "curly_brackets",
    "lorem_ipsum",
    "line_punctuation_share",
    "short_line_share",
    "fineweb_duplicate_share",
    "newlines_per_word",
    "code_share",
    "markup_share",
    "boilerplate_share",
    "top_word_share",
    "longest_word_run",
    "symbol_share",
    "digit_share",
)
"""Column names of `model.features.measure`; what each means stands in docs/filters.md, with its source."""

SPACE, LETTER, DIGIT, SYMBOL = 0, 1, 2, 3
_SPACES = (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)  # fmt: skip  # noqa: E501
_EMOJI = ((0x2600, 0x27BF), (0x1F000, 0x1FAFF))

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Rae et al. 2021 (Gopher), appendix A.1.1."""
BULLETS = "•-"
ELLIPSIS = "…"
C4_LINE_ENDS = ".?!\"'"
SENTENCE_ENDS = ".?!"
CLOSING = "\"')]”’"
TERMINAL_PUNCTUATION = ".!?…‼⁇⁈⁉。！？．؟۔।॥።፧།។៕"
CODE_CHARACTERS = "{}[]()<>=;_|&*+/\\^~$@#%`"
CODE_LINE_SHARE = 0.15
"""A line counts as code from this share of code characters among its non-space characters."""
CODE_LINE_ENDS = "{};"
SHORT_LINE_CHARACTERS = 30
C4_LINE_WORDS = 3
C4_LONGEST_WORD = 1000
LONGEST_TAG, LONGEST_ENTITY, LONGEST_LINK = 300, 10, 500

POLICY, JAVASCRIPT, LOREM, BOILERPLATE = 1, 2, 4, 8
PHRASES: tuple[tuple[str, int], ...] = (
    ("terms of use", POLICY | BOILERPLATE),
    ("privacy policy", POLICY | BOILERPLATE),
    ("cookie policy", POLICY | BOILERPLATE),
    ("uses cookies", POLICY | BOILERPLATE),
    ("use of cookies", POLICY | BOILERPLATE),
    ("use cookies", POLICY | BOILERPLATE),
    ("javascript", JAVASCRIPT),
    ("lorem ipsum", LOREM | BOILERPLATE),
    ("all rights reserved", BOILERPLATE),
    ("terms of service", BOILERPLATE),
    ("terms and conditions", BOILERPLATE),
    ("subscribe to", BOILERPLATE),
    ("sign up for", BOILERPLATE),
    ("click here", BOILERPLATE),
    ("read more", BOILERPLATE),
    ("share this", BOILERPLATE),
    ("share on facebook", BOILERPLATE),
    ("follow us on", BOILERPLATE),
    ("leave a comment", BOILERPLATE),
    ("leave a reply", BOILERPLATE),
    ("skip to content", BOILERPLATE),
    ("skip to main content", BOILERPLATE),
    ("back to top", BOILERPLATE),
    ("powered by", BOILERPLATE),
    ("enable javascript", BOILERPLATE),
    ("accept all", BOILERPLATE),
    ("add to cart", BOILERPLATE),
    ("previous post", BOILERPLATE),
    ("next post", BOILERPLATE),
    ("licensed under the", BOILERPLATE),
)
"""Lower-case ASCII phrases and what a line that holds one counts as. The first eight are C4's (Raffel et al. 2020)."""


@cache
def character_classes() -> NDArray[np.uint8]:
    """SPACE (Python's str.isspace), LETTER, DIGIT (0-9) or SYMBOL of each code point. (0x110000,)"""
    classes = np.where(code_point_classes() == 0, SYMBOL, LETTER).astype(np.uint8)
    classes[ord("0") : ord("9") + 1] = DIGIT
    classes[ord("_")] = SYMBOL
    for first, last in _EMOJI:
        classes[first : last + 1] = SYMBOL
    classes[list(_SPACES)] = SPACE
    classes.flags.writeable = False
    return classes
