"""Measure every document of a column once; each filter rule is then a comparison with one of these numbers.

The kernel is one sweep over the Arrow buffers, each document in cache: decoded to code points once, its words, lines
and paragraphs become 64-bit hashes, so that repetition is counted with small hash tables and no string is ever made.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.corpus.features.characters import F32, I32, Marks, Traits, traits_of_code_points
from model.corpus.features.lines import LINE_TOTALS, LineFeatures, lines_plain, measure_lines
from model.corpus.features.ngrams import NGRAM_FEATURES, RepeatedWords, repeated_words, repeated_words_plain
from model.corpus.features.phrases import phrase_tables
from model.corpus.features.repetition import (
    RepeatedLines,
    RepeatedParagraphs,
    repeated_lines,
    repeated_lines_plain,
    repeated_paragraphs,
    repeated_paragraphs_plain,
    table_size,
)
from model.corpus.features.words import WordFeatures, measure_words, split_words, stop_hashes, words_plain
from model.corpus.words import U64, buffers_of, utf8_code_point, utf8_width
from model.kernels.jit import COMPILED, bare_helper, kernel

FEATURES: tuple[str, ...] = (
    *LineFeatures._fields,
    *RepeatedLines._fields,
    *RepeatedParagraphs._fields,
    *WordFeatures._fields,
    *RepeatedWords._fields,
)
"""Column names of `measure`: whatever the families define, in the order in which the kernel finds it."""


def measure(texts: pa.LargeStringArray) -> F32:
    """Features of each text. (documents, len(FEATURES))"""
    if COMPILED:
        return measure_compiled(texts)
    rows = [measure_plain(text) for text in texts.to_pylist()]
    return np.array(rows, np.float64).reshape(len(rows), len(FEATURES)).astype(np.float32)


def measure_plain(text: str) -> list[float]:
    """The value of each feature of one text, in the order of FEATURES."""
    families: tuple[Sequence[float], ...] = (
        lines_plain(text),
        repeated_lines_plain(text),
        repeated_paragraphs_plain(text),
        words_plain(text),
        repeated_words_plain(text),
    )
    return [float(value) for value in chain.from_iterable(families)]


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
def _put(values: Sequence[float], row: F32, place: int) -> int:
    """Write a family's features from `place` on; returns where the next family's begin."""
    for i in range(len(values)):
        row[place + i] = values[i]
    return place + len(values)


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
    # One set of buffers, for the longest text: the helpers below allocate nothing (`bare_helper` says what that saves).
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    points = np.empty(longest, np.int32)
    point_traits = np.empty(longest, np.uint16)
    hashes = np.empty(longest + 1, np.uint64)
    lengths = np.empty(longest + 1, np.int32)
    kinds = np.empty(longest + 1, np.uint8)
    table = table_size(longest // 2 + 1)  # words, lines and paragraphs all have a separator between
    keys = np.empty(table, np.uint64)
    used = np.empty(table, np.int32)
    places = np.empty(longest + 1, np.int32)
    slots = np.empty(longest + 1, np.int32)
    totals = np.empty(LINE_TOTALS, np.int64)
    shares = np.empty(NGRAM_FEATURES, np.float64)
    for row in range(len(offsets) - 1):
        count = _decode(data[offsets[row] : offsets[row + 1]], traits, points, point_traits)
        text, marks = points[:count], point_traits[:count]
        # Families share buffers: each has read what another left before it writes its own.
        lines, line_features = measure_lines(
            text, marks, phrases, phrase_ends, phrase_marks, trigger, hashes, lengths, kinds, totals
        )
        place = _put(line_features, out[row], 0)
        place = _put(repeated_lines(hashes, lengths, kinds, lines, text, keys, used), out[row], place)
        place = _put(repeated_paragraphs(text, marks, keys, used), out[row], place)
        words = split_words(text, marks, hashes, lengths, kinds)
        place = _put(measure_words(text, marks, hashes, lengths, kinds, words, stops), out[row], place)
        repeated = repeated_words(hashes, lengths, kinds, words, count, keys, used, places, slots, shares)
        _put(repeated, out[row], place)
