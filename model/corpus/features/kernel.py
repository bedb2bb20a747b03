"""The features of `features_plain`, bit for bit, compiled: one sweep over the Arrow buffers, each document in cache.

A document is decoded to code points once; its words, lines and paragraphs become 64-bit hashes, so that repetition is
counted with small hash tables and no string is ever made.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.corpus.features.lines import LINE_TOTALS, measure_lines
from model.corpus.features.names import (
    ALPHABETIC_WORD_SHARE,
    CHARACTERS,
    DIGIT_SHARE,
    ELLIPSIS_RATIO,
    FEATURES,
    HASH_RATIO,
    LONGEST_WORD,
    LONGEST_WORD_RUN,
    MARKUP_SHARE,
    MEAN_WORD_LENGTH,
    NEWLINES_PER_WORD,
    STOP_WORDS_FOUND,
    SYMBOL_SHARE,
    TOP_WORD_SHARE,
    WORDS,
)
from model.corpus.features.repetition import (
    duplicate_lines,
    duplicate_paragraphs,
    measure_repetition,
    table_size,
    top_word,
)
from model.corpus.features.tables import (
    CLASS,
    CODE_POINT_BASE,
    DOT,
    ELLIPSIS,
    F32,
    HASH,
    I32,
    IN_ENTITY,
    NEWLINE,
    TAG_START,
    Marks,
    Traits,
    phrase_tables,
    share,
    stop_hashes,
    traits_of_code_points,
)
from model.corpus.words import U64, buffers_of, utf8_code_point, utf8_width
from model.kernels.jit import bare_helper, kernel


def measure_compiled(texts: pa.LargeStringArray) -> F32:
    """Features of each text. (documents, len(FEATURES))"""
    buffers = buffers_of(texts)
    out = np.zeros((len(texts), len(FEATURES)), np.float32)
    phrases, phrase_ends, phrase_marks, trigger = phrase_tables()
    _measure_kernel(
        buffers.data,
        buffers.offsets,
        traits_of_code_points(),
        stop_hashes(),
        phrases,
        phrase_ends,
        phrase_marks,
        trigger,
        out,
    )
    return out


@bare_helper
def _decode(data: NDArray[np.uint8], traits: Traits, out: I32, marks: Marks) -> int:
    """Write the code points of a text and the traits of each; returns their number.

    Looked up once and then read in order, traits cost the loops over them no gather: they become vector instructions.
    """
    count = 0
    for i in range(len(data)):
        byte = data[i]
        if byte < 128:
            out[count] = byte
            marks[count] = traits[byte]
            count += 1
        elif byte >= 0xC0:
            point = utf8_code_point(data, i, utf8_width(byte))
            out[count] = point
            marks[count] = traits[point]
            count += 1
    return count


@bare_helper
def _split_words(text: I32, marks: Marks, hashes: U64, lengths: I32, kinds: NDArray[np.uint8]) -> int:
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
        kind = np.uint8(kind | int(found == 1) * 3 | int(found == 2) * 2) if inside else np.uint8(0)
        hashes[count] = value
        lengths[count] = length
        kinds[count] = kind
        before = inside
    return count + before


@bare_helper
def _count_characters(text: I32, marks: Marks, words: int, out: F32) -> None:
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
            if dots == 3:
                ellipses += 1
                dots = 0
        else:
            dots = 0
    out[CHARACTERS] = len(text)
    out[HASH_RATIO] = share(hashes, words)
    out[ELLIPSIS_RATIO] = share(ellipses, words)
    out[NEWLINES_PER_WORD] = share(newlines, words)
    out[SYMBOL_SHARE] = share(symbols, visible)
    out[DIGIT_SHARE] = share(digits, visible)


@bare_helper
def _count_words(hashes: U64, lengths: I32, kinds: NDArray[np.uint8], count: int, stops: U64, out: F32) -> None:
    real = characters = lettered = longest = run = longest_run = found = 0
    for i in range(count):
        longest = max(longest, int(lengths[i]))
        if kinds[i] & 2:
            real += 1
            characters += int(lengths[i])
        run = run + 1 if i and hashes[i] == hashes[i - 1] else 1
        if kinds[i] & 1:
            lettered += 1
            longest_run = max(longest_run, run)
        if lengths[i] <= 4:
            for k in range(len(stops)):
                if hashes[i] == stops[k]:
                    found |= 1 << k
    distinct = 0
    for k in range(len(stops)):
        distinct += found >> k & 1
    out[WORDS] = real
    out[MEAN_WORD_LENGTH] = share(characters, real)
    out[LONGEST_WORD] = longest
    out[ALPHABETIC_WORD_SHARE] = share(lettered, count)
    out[LONGEST_WORD_RUN] = longest_run
    out[STOP_WORDS_FOUND] = distinct


@bare_helper
def _markup_length(text: I32, marks: Marks, i: int) -> int:
    """Characters of the tag, entity or link target that starts at text[i], or 0."""
    size = len(text)
    point = text[i]
    if point == 60 and i + 1 < size and marks[i + 1] & TAG_START:
        end = i + 2
        while end < size and end - i - 2 < 300 and text[end] != 60 and text[end] != 62:
            end += 1
        return end + 1 - i if end < size and text[end] == 62 else 0
    if point == 38:
        end = i + 1
        while end < size and end - i - 1 < 10 and marks[end] & IN_ENTITY:
            end += 1
        return end + 1 - i if end - i - 1 >= 2 and end < size and text[end] == 59 else 0
    if point == 93 and i + 1 < size and text[i + 1] == 40:
        end = i + 2
        while end < size and end - i - 2 < 500 and text[end] != 40 and text[end] != 41 and marks[end] & CLASS:
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


@kernel("u1[:]", "i8[:]", "u2[:]", "u8[:]", "i4[:]", "i8[:]", "i4[:]", "b1[:]", "out f4[:,:]")
def _measure_kernel(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    traits: Traits,
    stops: U64,
    phrases: I32,
    phrase_ends: NDArray[np.int64],
    phrase_marks: I32,
    trigger: NDArray[np.bool_],
    out: F32,
) -> None:
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    points = np.empty(longest, np.int32)
    point_traits = np.empty(longest, np.uint16)
    hashes = np.empty(longest + 1, np.uint64)
    lengths = np.empty(longest + 1, np.int32)
    kinds = np.empty(longest + 1, np.uint8)
    table = table_size(longest // 2 + 1)
    keys = np.empty(table, np.uint64)
    used = np.empty(table, np.int32)
    places = np.empty(longest + 1, np.int32)
    slots = np.empty(longest + 1, np.int32)
    totals = np.empty(LINE_TOTALS, np.int64)
    for row in range(len(offsets) - 1):
        count = _decode(data[offsets[row] : offsets[row + 1]], traits, points, point_traits)
        text, marks = points[:count], point_traits[:count]
        values = out[row]
        count = measure_lines(
            text, marks, phrases, phrase_ends, phrase_marks, trigger, hashes, lengths, kinds, totals, values
        )
        duplicate_lines(hashes, lengths, kinds, count, text, keys, used, values)
        duplicate_paragraphs(text, marks, keys, used, values)
        count = _split_words(text, marks, hashes, lengths, kinds)
        _count_characters(text, marks, count, values)
        _count_words(hashes, lengths, kinds, count, stops, values)
        values[MARKUP_SHARE] = share(_markup(text, marks), len(text))
        values[TOP_WORD_SHARE] = share(top_word(hashes, kinds, count, keys, used), count)
        measure_repetition(hashes, lengths, count, len(text), keys, used, places, slots, values)
