"""Cut text into the pieces that BPE merges within, byte by byte as Qwen2's pattern does, in compiled code.

Code points whose class Python's Unicode does not know end the cutting: the caller leaves such texts to tiktoken.
"""

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.corpus.words import utf8_code_point, utf8_width
from model.kernels.jit import bare_helper

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]

OTHER, LETTER, NUMBER, SPACE, NEWLINE, UNKNOWN = 0, 1, 2, 3, 4, 5
_WHITE_SPACE = (0x9, 0xB, 0xC, 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
_ASSIGNED_END = 0x33480
"""Above lie variation selectors and private use only (as of Unicode 16): left to tiktoken."""
_KINDS = {"L": LETTER, "N": NUMBER}


@cache
def piece_classes() -> U8:
    """What the pattern of Qwen2 tells apart: \\p{L}, \\p{N}, \\s and [\\r\\n], for each code point. (0x110000,)"""
    classes = np.full(0x110000, UNKNOWN, np.uint8)
    for point in range(_ASSIGNED_END):
        category = unicodedata.category(chr(point))
        if category != "Cn":  # unassigned: a later Unicode may make it a letter
            classes[point] = _KINDS.get(category[0], OTHER)
    classes[list(_WHITE_SPACE)] = SPACE
    classes[[0xA, 0xD]] = NEWLINE
    classes.flags.writeable = False
    return classes


@bare_helper
def classify(text: U8, classes: U8, kinds: U8, last_eight: U64) -> None:
    """Write the class of each byte's code point, and one more that ends every run; and the 8 bytes up to each byte.

    Asking for classes byte by byte afterwards makes the loops over runs 7 times as fast as decoding in them.
    """
    kind = np.uint8(0)
    value = np.uint64(0)
    for i in range(len(text)):
        byte = text[i]
        value = (value << np.uint64(8)) | np.uint64(byte)
        last_eight[i] = value
        if byte < 0x80:
            kind = classes[byte]
        elif byte >= 0xC0:
            kind = classes[utf8_code_point(text, i, utf8_width(byte))]
        kinds[i] = kind
    kinds[len(text)] = 255


@bare_helper
def _contraction(text: U8, i: int) -> int:
    """Bytes of `'s 't 're 've 'm 'll 'd` at text[i], any case (of which the long s is one of s), or 0."""
    if i + 1 >= len(text):
        return 0
    first = text[i + 1] | 0x20
    if first == 115 or first == 116 or first == 109 or first == 100:  # s t m d
        return 2
    if i + 2 >= len(text):
        return 0
    if text[i + 1] == 0xC5 and text[i + 2] == 0xBF:  # the long s, U+017F, which (?i) takes for an s
        return 3
    second = text[i + 2] | 0x20
    if ((first == 114 or first == 118) and second == 101) or (first == 108 and second == 108):
        return 3
    return 0


@bare_helper
def _white_end(text: U8, kinds: U8, i: int) -> int:
    """End of the piece of white space at i: `\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`."""
    place = after_newline = i
    while kinds[place] == SPACE or kinds[place] == NEWLINE:
        place += 1
        if kinds[place - 1] == NEWLINE:
            after_newline = place
    if after_newline > i:
        return after_newline
    # \s+(?!\S): white space at the end is one piece, before a word all but its last character is.
    if place == len(text):
        return place
    last = place - 1
    while text[last] & 0xC0 == 0x80:
        last -= 1
    return last if last > i else place


@bare_helper
def piece_end(text: U8, kinds: U8, i: int) -> int:
    """End of the piece that begins at i, by Qwen2's pattern; -1 at a code point of unknown class."""
    kind = kinds[i]
    if kind == LETTER:
        while kinds[i] == LETTER:
            i += 1
        return i
    following = i + 1
    while following < len(text) and text[following] & 0xC0 == 0x80:
        following += 1
    if kind == NUMBER:  # a token for each digit
        return following
    if kind == UNKNOWN:
        return -1
    if text[i] == 39:
        length = _contraction(text, i)
        if length:
            return i + length
    after = kinds[following]
    if after == LETTER and kind != NEWLINE:
        while kinds[following] == LETTER:
            following += 1
        return following
    if kind == OTHER or (text[i] == 32 and after == OTHER):
        while kinds[following] == OTHER:
            following += 1
        while kinds[following] == NEWLINE:
            following += 1
        return following
    return _white_end(text, kinds, i)
