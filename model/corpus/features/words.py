"""Features of a document's characters and words.

First the definition in plain Python, the oracle of the kernel and its stand-in; then the same, compiled.
"""

import re
from collections import Counter
from functools import cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.corpus.features.characters import (
    CLASS,
    CODE_POINT_BASE,
    DIGIT,
    DOT,
    ELLIPSIS,
    HASH,
    I32,
    IN_ENTITY,
    LETTER,
    NEWLINE,
    SPACE,
    SYMBOL,
    TAG_START,
    Marks,
    classes_of,
    share,
)
from model.corpus.words import U64
from model.kernels.jit import bare_helper

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Rae et al. 2021 (Gopher), appendix A.1.1."""
LONGEST_STOP_WORD = 4  # longer words need no comparison
# Bounded, or a lone `<` or `](` would be followed to the end of the text.
LONGEST_TAG, LONGEST_ENTITY, LONGEST_LINK = 300, 10, 500
_TAG = rf"<[A-Za-z/!?][^<>]{{0,{LONGEST_TAG}}}>"
_ENTITY = rf"&[A-Za-z0-9#]{{2,{LONGEST_ENTITY}}};"
_LINK_TARGET = rf"\]\([^\s()]{{0,{LONGEST_LINK}}}\)"
_MARKUP = re.compile(f"{_TAG}|{_ENTITY}|{_LINK_TARGET}")


class WordFeatures(NamedTuple):
    """What is measured of characters and of words between spaces; docs/filters.md says what each means."""

    characters: float
    words: float
    mean_word_length: float
    longest_word: float
    hash_ratio: float
    ellipsis_ratio: float
    alphabetic_word_share: float
    stop_words: float
    newlines_per_word: float
    markup_share: float
    longest_word_run: float
    symbol_share: float
    digit_share: float


def words_plain(text: str) -> WordFeatures:
    """The features of a text's characters and words."""
    words = text.split()
    real = [word for word in words if has_class(word, LETTER, DIGIT)]
    classes = Counter(classes_of(text))
    visible = len(text) - classes[SPACE]
    runs = [sum(1 for _ in run) for word, run in groupby(words) if has_class(word, LETTER)]
    return WordFeatures(
        characters=len(text),
        words=len(real),
        mean_word_length=share(sum(map(len, real)), len(real)),
        longest_word=max(map(len, words), default=0),
        hash_ratio=share(text.count("#"), len(words)),
        ellipsis_ratio=share(text.count("...") + text.count(chr(ELLIPSIS)), len(words)),
        alphabetic_word_share=share(sum(has_class(word, LETTER) for word in words), len(words)),
        stop_words=len(set(words) & set(STOP_WORDS)),
        newlines_per_word=share(text.count("\n"), len(words)),
        markup_share=share(sum(map(len, _MARKUP.findall(text))), len(text)),
        longest_word_run=max(runs, default=0),
        symbol_share=share(classes[SYMBOL], visible),
        digit_share=share(classes[DIGIT], visible),
    )


def has_class(word: str, *classes: int) -> bool:
    """Whether a character of the word is of one of these classes."""
    return any(found in classes for found in classes_of(word))


@cache
def stop_hashes() -> U64:
    """As `split_words` hashes them. (len(STOP_WORDS),)"""
    hashes = []
    for word in STOP_WORDS:
        value = np.uint64(0)
        with np.errstate(over="ignore"):
            for character in word:
                value = value * CODE_POINT_BASE + np.uint64(ord(character))
        hashes.append(value)
    return np.array(hashes, np.uint64)


@bare_helper
def split_words(text: I32, marks: Marks, hashes: U64, lengths: I32, kinds: NDArray[np.uint8]) -> int:
    """Whitespace-separated words: polynomial hash, characters, and whether it has a letter, a letter or digit."""
    count = length = before = 0
    value = np.uint64(0)
    kind = np.uint8(0)
    for i in range(len(text)):  # as model.corpus.words.hash_words: no branch that depends on where words end
        found = marks[i] & CLASS
        inside = int(found != 0)
        count += before & (1 - inside)
        value = (value * CODE_POINT_BASE + np.uint64(text[i])) if inside else np.uint64(0)
        length = (length + 1) * inside
        # Bit 0 says that a letter was there, bit 1 a letter or digit.
        kind = np.uint8(kind | int(found == 1) * 3 | int(found == 2) * 2) if inside else np.uint8(0)
        hashes[count] = value
        lengths[count] = length
        kinds[count] = kind
        before = inside
    return count + before


class _Characters(NamedTuple):
    """How many characters of each kind there are; an ellipsis of three dots is one."""

    visible: int
    digits: int
    symbols: int
    hashes: int
    ellipses: int
    newlines: int


@bare_helper
def _count_characters(text: I32, marks: Marks) -> _Characters:
    visible = digits = symbols = 0
    for i in range(len(text)):
        kind = marks[i] & CLASS
        visible += int(kind != 0)
        digits += int(kind == 2)
        symbols += int(kind == 3)
    hashes = ellipses = newlines = 0
    for i in range(len(text)):
        hashes += int(text[i] == HASH)
        newlines += int(text[i] == NEWLINE)
        ellipses += int(text[i] == ELLIPSIS)
    dots = 0
    for i in range(len(text)):
        if text[i] == DOT:
            dots += 1
            if dots == 3:  # as str.count: the next one begins anew
                ellipses += 1
                dots = 0
        else:
            dots = 0
    return _Characters(visible, digits, symbols, hashes, ellipses, newlines)


class _Words(NamedTuple):
    """`real` words have a letter or digit, `lettered` ones a letter; `found`: a bit for each stop word."""

    real: int
    real_characters: int
    lettered: int
    longest: int
    longest_run: int
    found: int


@bare_helper
def _count_words(hashes: U64, lengths: I32, kinds: NDArray[np.uint8], count: int, stops: U64) -> _Words:
    real = characters = lettered = longest = run = longest_run = found = 0
    for i in range(count):
        longest = max(longest, int(lengths[i]))
        if kinds[i] & 2:
            real += 1
            characters += int(lengths[i])
        run = run + 1 if i and hashes[i] == hashes[i - 1] else 1  # hashes alone: 2^-64 that two words agree
        if kinds[i] & 1:
            lettered += 1
            longest_run = max(longest_run, run)
        if lengths[i] <= LONGEST_STOP_WORD:
            for k in range(len(stops)):
                if hashes[i] == stops[k]:
                    found |= 1 << k
    return _Words(real, characters, lettered, longest, longest_run, found)


@bare_helper
def _markup_length(text: I32, marks: Marks, i: int) -> int:
    """Characters of the tag, entity or link target that starts at text[i], or 0."""
    size = len(text)
    point = text[i]
    if point == 60 and i + 1 < size and marks[i + 1] & TAG_START:  # <
        end = i + 2
        while end < size and end - i - 2 < LONGEST_TAG and text[end] != 60 and text[end] != 62:
            end += 1
        return end + 1 - i if end < size and text[end] == 62 else 0
    if point == 38:  # &
        end = i + 1
        while end < size and end - i - 1 < LONGEST_ENTITY and marks[end] & IN_ENTITY:
            end += 1
        return end + 1 - i if end - i - 1 >= 2 and end < size and text[end] == 59 else 0
    if point == 93 and i + 1 < size and text[i + 1] == 40:  # ](
        end = i + 2
        while end < size and end - i - 2 < LONGEST_LINK and text[end] != 40 and text[end] != 41 and marks[end] & CLASS:
            end += 1
        return end + 1 - i if end < size and text[end] == 41 else 0
    return 0


@bare_helper
def _markup(text: I32, marks: Marks) -> int:
    total = 0
    i = 0
    while i < len(text):
        point = text[i]
        length = _markup_length(text, marks, i) if point == 60 or point == 38 or point == 93 else 0
        total += length
        i += max(length, 1)
    return total


@bare_helper
def measure_words(
    text: I32, marks: Marks, hashes: U64, lengths: I32, kinds: NDArray[np.uint8], count: int, stops: U64
) -> WordFeatures:
    """The features of a text and of the `count` words that `split_words` found in it."""
    seen = _count_characters(text, marks)
    said = _count_words(hashes, lengths, kinds, count, stops)
    stop_words = 0
    for k in range(len(stops)):
        stop_words += said.found >> k & 1
    return WordFeatures(
        characters=float(len(text)),
        words=float(said.real),
        mean_word_length=share(said.real_characters, said.real),
        longest_word=float(said.longest),
        hash_ratio=share(seen.hashes, count),
        ellipsis_ratio=share(seen.ellipses, count),
        alphabetic_word_share=share(said.lettered, count),
        stop_words=float(stop_words),
        newlines_per_word=share(seen.newlines, count),
        markup_share=share(_markup(text, marks), len(text)),
        longest_word_run=float(said.longest_run),
        symbol_share=share(seen.symbols, seen.visible),
        digit_share=share(seen.digits, seen.visible),
    )
