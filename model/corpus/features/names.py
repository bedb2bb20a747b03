"""What is measured of a document, and the characters and phrases that the measures are defined by."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.corpus.words import code_point_classes

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
"""Column names of `measure.measure`; what each means stands in docs/filters.md, with its source."""
(
    CHARACTERS, WORDS, MEAN_WORD_LENGTH, LONGEST_WORD, HASH_RATIO, ELLIPSIS_RATIO, BULLET_LINE_SHARE,
    ELLIPSIS_LINE_SHARE, ALPHABETIC_WORD_SHARE, STOP_WORDS_FOUND, DUPLICATE_LINE_SHARE, DUPLICATE_LINE_CHAR_SHARE,
    DUPLICATE_PARAGRAPH_SHARE, DUPLICATE_PARAGRAPH_CHAR_SHARE, TOP_2GRAM_SHARE, TOP_3GRAM_SHARE, TOP_4GRAM_SHARE,
    DUPLICATE_5GRAM_SHARE, DUPLICATE_6GRAM_SHARE, DUPLICATE_7GRAM_SHARE, DUPLICATE_8GRAM_SHARE, DUPLICATE_9GRAM_SHARE,
    DUPLICATE_10GRAM_SHARE, C4_SENTENCES, C4_LINE_SHARE, CURLY_BRACKETS, LOREM_IPSUM, LINE_PUNCTUATION_SHARE,
    SHORT_LINE_SHARE, FINEWEB_DUPLICATE_SHARE, NEWLINES_PER_WORD, CODE_SHARE, MARKUP_SHARE, BOILERPLATE_SHARE,
    TOP_WORD_SHARE, LONGEST_WORD_RUN, SYMBOL_SHARE, DIGIT_SHARE,
) = range(len(FEATURES))  # fmt: skip
"""The column of each feature."""

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
_SENTENCE_TERMINALS = (
    (0x21, 0x21), (0x2E, 0x2E), (0x3F, 0x3F), (0x589, 0x589), (0x61D, 0x61F), (0x6D4, 0x6D4), (0x700, 0x702),
    (0x7F9, 0x7F9), (0x837, 0x837), (0x839, 0x839), (0x83D, 0x83E), (0x964, 0x965), (0x104A, 0x104B), (0x1362,
    0x1362), (0x1367, 0x1368), (0x166E, 0x166E), (0x1735, 0x1736), (0x17D4, 0x17D6), (0x17D9, 0x17DA), (0x1803,
    0x1803), (0x1809, 0x1809), (0x1944, 0x1945), (0x1AA8, 0x1AAB), (0x1B5A, 0x1B5B), (0x1B5E, 0x1B5F), (0x1B7D,
    0x1B7E), (0x1C3B, 0x1C3C), (0x1C7E, 0x1C7F), (0x203C, 0x203D), (0x2047, 0x2049), (0x2E2E, 0x2E2E), (0x2E3C,
    0x2E3C), (0x2E53, 0x2E54), (0x3002, 0x3002), (0xA4FF, 0xA4FF), (0xA60E, 0xA60F), (0xA6F3, 0xA6F3), (0xA6F7,
    0xA6F7), (0xA876, 0xA877), (0xA8CE, 0xA8CF), (0xA92F, 0xA92F), (0xA9C8, 0xA9C9), (0xAA5D, 0xAA5F), (0xAAF0,
    0xAAF1), (0xABEB, 0xABEB), (0xFE52, 0xFE52), (0xFE56, 0xFE57), (0xFF01, 0xFF01), (0xFF0E, 0xFF0E), (0xFF1F,
    0xFF1F), (0xFF61, 0xFF61), (0x10A56, 0x10A57), (0x10F55, 0x10F59), (0x10F86, 0x10F89), (0x11047, 0x11048),
    (0x110BE, 0x110C1), (0x11141, 0x11143), (0x111C5, 0x111C6), (0x111CD, 0x111CD), (0x111DE, 0x111DF), (0x11238,
    0x11239), (0x1123B, 0x1123C), (0x112A9, 0x112A9), (0x1144B, 0x1144C), (0x115C2, 0x115C3), (0x115C9, 0x115D7),
    (0x11641, 0x11642), (0x1173C, 0x1173E), (0x11944, 0x11944), (0x11946, 0x11946), (0x11A42, 0x11A43), (0x11A9B,
    0x11A9C), (0x11C41, 0x11C42), (0x11EF7, 0x11EF8), (0x11F43, 0x11F44), (0x16A6E, 0x16A6F), (0x16AF5, 0x16AF5),
    (0x16B37, 0x16B38), (0x16B44, 0x16B44), (0x16E98, 0x16E98), (0x1BC9F, 0x1BC9F), (0x1DA88, 0x1DA88),
)  # fmt: skip
TERMINAL_PUNCTUATION = "".join(chr(point) for first, last in _SENTENCE_TERMINALS for point in range(first, last + 1))
"""Characters with Unicode's property Sentence_Terminal, as FineWeb's code has them."""
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
