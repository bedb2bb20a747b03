"""Features of lines and paragraphs that occurred before.

First the definition in plain Python, the oracle of the kernel and its stand-in; then the same, compiled: everything is
a hash in a small table.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.corpus.features.characters import (
    CLASS,
    CODE_POINT_BASE,
    I32,
    NEWLINE,
    WORD_BASE,
    Marks,
    share,
    trim_end,
)
from model.corpus.words import U64, mix
from model.kernels.jit import bare_helper


class RepeatedLines(NamedTuple):
    """Of the non-empty lines of a text."""

    duplicate_line_share: float
    duplicate_line_char_share: float
    fineweb_duplicate_share: float


class RepeatedParagraphs(NamedTuple):
    """Of what blank lines separate."""

    duplicate_paragraph_share: float
    duplicate_paragraph_char_share: float


def repeated_lines_plain(text: str) -> RepeatedLines:
    """The features of a text's repeated lines."""
    lines = [line for line in text.split("\n") if line]
    count, characters = _duplicates(lines)
    # FineWeb looks at lines with more than blanks, Gopher at all that are not empty.
    filled_characters = _duplicates([line for line in lines if line.strip()])[1]
    return RepeatedLines(
        duplicate_line_share=share(count, len(lines)),
        duplicate_line_char_share=share(characters, len(text)),
        fineweb_duplicate_share=share(filled_characters, len(text) - text.count("\n")),
    )


def repeated_paragraphs_plain(text: str) -> RepeatedParagraphs:
    """The features of a text's repeated paragraphs."""
    paragraphs = re.split(r"\n{2,}", text.strip())
    count, characters = _duplicates(paragraphs)
    return RepeatedParagraphs(
        duplicate_paragraph_share=share(count, len(paragraphs)),
        duplicate_paragraph_char_share=share(characters, len(text)),
    )


def _duplicates(pieces: Sequence[str]) -> tuple[int, int]:
    """How many pieces occurred before, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        seen.add(piece)
    return count, characters


@bare_helper
def table_size(count: int) -> int:
    size = 16
    while size < 2 * count:  # half full at most, so that probes are short
        size *= 2
    return size


@bare_helper
def slot_of(keys: U64, used: I32, size: int, key: np.uint64) -> int:
    """Where `key` lies, or would lie, in an open-addressing table whose free slots have used == 0."""
    place = np.int64(mix(key) & np.uint64(size - 1))
    while used[place] and keys[place] != key:
        place = (place + 1) & np.int64(size - 1)
    return int(place)


@bare_helper
def repeated_lines(
    hashes: U64, lengths: I32, filled: NDArray[np.uint8], count: int, text: I32, keys: U64, used: I32
) -> RepeatedLines:
    """Of the lines that `measure_lines` hashed."""
    size = table_size(count)
    used[:size] = 0
    duplicates = characters = filled_characters = 0
    for i in range(count):
        key = hashes[i] + np.uint64(lengths[i]) * WORD_BASE  # the polynomial alone does not see leading NULs
        place = slot_of(keys, used, size, key)
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
    return RepeatedLines(
        duplicate_line_share=share(duplicates, count),
        duplicate_line_char_share=share(characters, len(text)),
        fineweb_duplicate_share=share(filled_characters, len(text) - newlines),
    )


@bare_helper
def repeated_paragraphs(text: I32, marks: Marks, keys: U64, used: I32) -> RepeatedParagraphs:
    """Of the paragraphs of a text."""
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
        place = slot_of(keys, used, size, key)
        if used[place]:
            duplicates += 1
            characters += stop - begin
        used[place] = 1
        keys[place] = key
        paragraphs += 1
        begin = stop
        while begin < end and text[begin] == NEWLINE:
            begin += 1
    return RepeatedParagraphs(
        duplicate_paragraph_share=share(duplicates, max(paragraphs, 1)),
        duplicate_paragraph_char_share=share(characters, len(text)),
    )
