"""Compiled features of repetition: lines, paragraphs, words and n-grams seen before, as hashes in small tables."""

import numpy as np
from numpy.typing import NDArray

from model.corpus.features.lines import trim_end
from model.corpus.features.names import (
    DUPLICATE_5GRAM_SHARE,
    DUPLICATE_LINE_CHAR_SHARE,
    DUPLICATE_LINE_SHARE,
    DUPLICATE_PARAGRAPH_CHAR_SHARE,
    DUPLICATE_PARAGRAPH_SHARE,
    FINEWEB_DUPLICATE_SHARE,
    TOP_2GRAM_SHARE,
)
from model.corpus.features.tables import CLASS, CODE_POINT_BASE, F32, I32, NEWLINE, WORD_BASE, Marks, share
from model.corpus.words import U64, mix
from model.kernels.jit import bare_helper


@bare_helper
def table_size(count: int) -> int:
    size = 16
    while size < 2 * count:
        size *= 2
    return size


@bare_helper
def _slot(keys: U64, used: I32, size: int, key: np.uint64) -> int:
    """Where `key` lies, or would lie, in an open-addressing table whose free slots have used == 0."""
    place = np.int64(mix(key) & np.uint64(size - 1))
    while used[place] and keys[place] != key:
        place = (place + 1) & np.int64(size - 1)
    return int(place)


@bare_helper
def duplicate_lines(
    hashes: U64, lengths: I32, filled: NDArray[np.uint8], count: int, text: I32, keys: U64, used: I32, out: F32
) -> None:
    size = table_size(count)
    used[:size] = 0
    duplicates = characters = filled_characters = 0
    for i in range(count):
        key = hashes[i] + np.uint64(lengths[i]) * WORD_BASE
        place = _slot(keys, used, size, key)
        if used[place]:
            duplicates += 1
            characters += int(lengths[i])
            if filled[i]:
                filled_characters += int(lengths[i])
        used[place] = 1
        keys[place] = key
    newlines = 0
    for i in range(len(text)):
        newlines += int(text[i] == NEWLINE)
    out[DUPLICATE_LINE_SHARE] = share(duplicates, count)
    out[DUPLICATE_LINE_CHAR_SHARE] = share(characters, len(text))
    out[FINEWEB_DUPLICATE_SHARE] = share(filled_characters, len(text) - newlines)


@bare_helper
def duplicate_paragraphs(text: I32, marks: Marks, keys: U64, used: I32, out: F32) -> None:
    start = 0
    while start < len(text) and marks[start] & CLASS == 0:
        start += 1
    end = trim_end(text, marks, start, len(text))
    used[: table_size(len(text) // 2 + 1)] = 0
    size = table_size(len(text) // 2 + 1)
    paragraphs = duplicates = characters = 0
    begin = start
    while begin < end:
        stop = begin
        value = np.uint64(0)
        while stop < end and not (text[stop] == NEWLINE and stop + 1 < end and text[stop + 1] == NEWLINE):
            value = value * CODE_POINT_BASE + np.uint64(text[stop])
            stop += 1
        key = value + np.uint64(stop - begin) * WORD_BASE
        place = _slot(keys, used, size, key)
        if used[place]:
            duplicates += 1
            characters += stop - begin
        used[place] = 1
        keys[place] = key
        paragraphs += 1
        begin = stop
        while begin < end and text[begin] == NEWLINE:
            begin += 1
    out[DUPLICATE_PARAGRAPH_SHARE] = share(duplicates, max(paragraphs, 1))
    out[DUPLICATE_PARAGRAPH_CHAR_SHARE] = share(characters, len(text))


@bare_helper
def _ngram_hash(hashes: U64, start: int, n: int) -> np.uint64:
    value = np.uint64(n)
    for k in range(n):
        value = value * WORD_BASE + hashes[start + k]
    return value


@bare_helper
def _count_ngrams(hashes: U64, n: int, places: I32, count: int, slots: I32, keys: U64, used: I32) -> None:
    """Count the n-grams at `places`, each in a slot of the table: used[slots[i]] is the count of the i-th."""
    size = table_size(count)
    used[:size] = 0
    for i in range(count):
        key = _ngram_hash(hashes, int(places[i]), n)
        slot = _slot(keys, used, size, key)
        keys[slot] = key
        used[slot] += 1
        slots[i] = slot


@bare_helper
def _top_ngram(lengths: I32, n: int, places: I32, count: int, slots: I32, used: I32) -> int:
    """Characters that the most frequent repeated n-gram covers; of equally frequent ones, the first."""
    best = 1
    first = 0
    for i in range(count):
        if used[slots[i]] > best:
            best = int(used[slots[i]])
            first = int(places[i])
    if best < 2:
        return 0
    characters = n - 1
    for k in range(n):
        characters += int(lengths[first + k])
    return characters * best


@bare_helper
def _repeated_ngrams(lengths: I32, n: int, places: I32, count: int, slots: I32, used: I32) -> int:
    """Characters of words in n-grams seen before, each word counted once. Spoils `used`: seen slots become negative."""
    characters = following = 0
    for i in range(count):
        if places[i] < following:
            continue
        if used[slots[i]] < 0:
            for k in range(n):
                characters += int(lengths[places[i] + k])
            following = int(places[i]) + n
        used[slots[i]] = -abs(used[slots[i]])
    return characters


@bare_helper
def top_word(hashes: U64, kinds: NDArray[np.uint8], count: int, keys: U64, used: I32) -> int:
    size = table_size(count)
    used[:size] = 0
    best = 0
    for i in range(count):
        if kinds[i] & 1:
            place = _slot(keys, used, size, hashes[i])
            keys[place] = hashes[i]
            used[place] += 1
            best = max(best, int(used[place]))
    return best


@bare_helper
def measure_repetition(
    hashes: U64, lengths: I32, words: int, size: int, keys: U64, used: I32, places: I32, slots: I32, out: F32
) -> None:
    """All n-gram features; an n-gram is only repeated where its first n - 1 words are, so few places are counted."""
    count = words
    for i in range(words):
        places[i] = i
    for n in range(2, 11):
        fitting = 0
        while fitting < count and places[fitting] + n <= words:
            fitting += 1
        count = fitting
        _count_ngrams(hashes, n, places, count, slots, keys, used)
        if n <= 4:
            out[TOP_2GRAM_SHARE + n - 2] = share(_top_ngram(lengths, n, places, count, slots, used), size)
        else:
            out[DUPLICATE_5GRAM_SHARE + n - 5] = share(_repeated_ngrams(lengths, n, places, count, slots, used), size)
        left = 0
        for i in range(count):
            if abs(used[slots[i]]) > 1:
                places[left] = places[i]
                left += 1
        count = left
