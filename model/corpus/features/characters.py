"""Characters that the features are defined by: sets of them, spelt out, and the same as bits that kernels test."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.corpus.words import code_point_classes
from model.kernels.jit import bare_helper

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
Traits = NDArray[np.uint16]
"""A set of bits for each code point there is."""
Marks = NDArray[np.uint16]
"""The traits of each code point of a text."""

SPACE, LETTER, DIGIT, SYMBOL = 0, 1, 2, 3
_SPACES = (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)  # fmt: skip  # noqa: E501
_EMOJI = ((0x2600, 0x27BF), (0x1F000, 0x1FAFF))
BULLETS = "•-"
C4_LINE_ENDS = ".?!\"'"
SENTENCE_ENDS = ".?!"
CLOSING_MARKS = "\"')]”’"
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
CODE_LINE_ENDS = "{};"

# What a code point belongs to: the class in two bits, then one bit a set.
CLASS = 3
C4_END, SENTENCE_END, CLOSING, TERMINAL, CODE, CODE_END, BULLET, TAG_START, IN_ENTITY = (
    1 << bit for bit in range(2, 11)
)
NEWLINE, DOT, HASH, BRACE, ELLIPSIS = ord("\n"), ord("."), ord("#"), ord("{"), ord("…")
CODE_POINT_BASE = np.uint64(0x3243F6A8885A308D)
WORD_BASE = np.uint64(0x2B7E151628AED2A7)
"""Odd multipliers of polynomial hashes modulo 2^64, over code points and over words (first digits of pi and e)."""


@cache
def character_classes() -> NDArray[np.uint8]:
    """SPACE (Python's str.isspace), LETTER, DIGIT (0-9) or SYMBOL of each code point. (0x110000,)"""
    classes = np.where(code_point_classes() == 0, SYMBOL, LETTER).astype(np.uint8)
    classes[ord("0") : ord("9") + 1] = DIGIT
    classes[ord("_")] = SYMBOL  # part of a word in shingles, no letter of a text
    for first, last in _EMOJI:
        classes[first : last + 1] = SYMBOL  # a word by itself in shingles, no letter of a text
    classes[list(_SPACES)] = SPACE
    classes.flags.writeable = False
    return classes


@cache
def traits_of_code_points() -> NDArray[np.uint16]:
    """Class and memberships of each code point, one bit a set. (0x110000,)"""
    traits: Traits = character_classes().astype(np.uint16)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    members = {
        C4_END: C4_LINE_ENDS,
        SENTENCE_END: SENTENCE_ENDS,
        CLOSING: CLOSING_MARKS,
        TERMINAL: TERMINAL_PUNCTUATION,
        CODE: CODE_CHARACTERS,
        CODE_END: CODE_LINE_ENDS,
        BULLET: BULLETS,
        TAG_START: letters + "/!?",
        IN_ENTITY: letters + "0123456789#",
    }
    for bit, characters in members.items():
        traits[[ord(character) for character in characters]] |= np.uint16(bit)
    return traits


def classes_of(text: str) -> list[int]:
    """SPACE, LETTER, DIGIT or SYMBOL of each character."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    found: list[int] = character_classes()[points].tolist()
    return found


@bare_helper
def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@bare_helper
def trim_end(text: I32, marks: Marks, start: int, end: int) -> int:
    while end > start and marks[end - 1] & CLASS == 0:
        end -= 1
    return end
