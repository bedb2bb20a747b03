"""Occurrences of given word n-grams in documents: a bitmap passes almost nothing, a search decides, words confirm."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.corpus.words import (
    U64,
    ascii_letters,
    buffers_of,
    code_point_classes,
    hash_words,
    lower_non_ascii,
    shingle_in_place,
    shingles,
    shingles_plain,
    words_of,
)
from model.kernels.jit import COMPILED, kernel

_BITMAP_BITS = 24
"""2 MB: stays in the second-level cache, and one position in 2^24 / n-grams passes by chance."""


@dataclass(frozen=True)
class Matches:
    """Each n-gram found in a document, once a document: `words` is its text. In order of occurrence."""

    rows: NDArray[np.int64]
    ngrams: NDArray[np.int64]
    words: list[str]


def matches(
    texts: pa.LargeStringArray, sources: pa.LargeStringArray, hashes: U64, source_of: NDArray[np.int64], words: int
) -> Matches:
    """Which of the n-grams occur in which texts, confirmed word by word.

    Args:
        texts: the documents.
        sources: texts that the n-grams come from.
        hashes: shingle hashes of the n-grams, ascending.
        source_of: a text of `sources` that has the n-gram.
        words: n.
    """
    rows, numbers = _hash_matches(texts, hashes, words)
    confirmed: list[tuple[int, int, str]] = []
    known: dict[int, set[str]] = {}
    for row in np.unique(rows).tolist():
        text = texts.slice(row, 1)
        own = _ngrams_in_text(text[0].as_py(), words)
        # Equal hashes are not yet equal words: few n-grams come this far, so words are compared as strings.
        hashed = shingles(text, words).values
        for number in dict.fromkeys(numbers[rows == row].tolist()):
            source = int(source_of[number])
            if source not in known:
                known[source] = set(_ngrams_in_text(sources[source].as_py(), words))
            ngram = own[int(np.flatnonzero(hashed == hashes[number])[0])]
            if ngram in known[source]:
                confirmed.append((row, number, ngram))
    return Matches(
        np.array([row for row, _, _ in confirmed], np.int64),
        np.array([number for _, number, _ in confirmed], np.int64),
        [ngram for _, _, ngram in confirmed],
    )


def _ngrams_in_text(text: str, words: int) -> list[str]:
    """The n-grams of a text as words with one space between, in order, as `shingles` hashes them."""
    found = words_of(text)
    width = min(words, len(found))
    return [" ".join(found[i : i + width]) for i in range(len(found) - width + 1)] if found else []


def _hash_matches(texts: pa.LargeStringArray, hashes: U64, words: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, n-gram) of every position whose hash is among `hashes`, in order of position."""
    if not len(hashes):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if not COMPILED:
        return _hash_matches_plain(texts, hashes, words)
    buffers = buffers_of(lower_non_ascii(texts))
    bitmap = np.zeros(1 << _BITMAP_BITS >> 3, np.uint8)
    slots = (hashes >> np.uint64(64 - _BITMAP_BITS)).astype(np.int64)
    np.bitwise_or.at(bitmap, slots >> 3, (1 << (slots & 7)).astype(np.uint8))
    room = 1024  # hits; a column that has more is read twice
    while True:
        rows, numbers = np.empty(room, np.int64), np.empty(room, np.int64)
        count = _match_kernel(
            buffers.data, buffers.offsets, ascii_letters(), code_point_classes(), words, bitmap, hashes, rows, numbers
        )
        if count <= room:
            return rows[:count], numbers[:count]
        room = count


def _hash_matches_plain(
    texts: pa.LargeStringArray, hashes: U64, words: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    found = shingles_plain(texts, words)
    owner = np.repeat(np.arange(len(found)), np.diff(found.offsets))
    places = np.minimum(np.searchsorted(hashes, found.values), len(hashes) - 1)
    hit = hashes[places] == found.values
    return owner[hit], places[hit]


@kernel("u1[:]", "i8[:]", "u1[:]", "u1[:]", "i8", "u1[:]", "u8[:]", "out i8[:]", "out i8[:]")
def _match_kernel(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    letters: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    words: int,
    bitmap: NDArray[np.uint8],
    hashes: U64,
    rows: NDArray[np.int64],
    numbers: NDArray[np.int64],
) -> int:
    """Write as many hits as there is room for; returns how many there are."""
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    scratch = np.empty(longest // 2 + 2, np.uint64)
    count = 0
    for row in range(len(offsets) - 1):
        found = hash_words(data[offsets[row] : offsets[row + 1]], letters, classes, scratch)
        found = shingle_in_place(scratch, found, words)
        for i in range(found):
            value = scratch[i]
            slot = value >> np.uint64(40)  # 64 - _BITMAP_BITS
            if not bitmap[slot >> np.uint64(3)] >> (slot & np.uint64(7)) & np.uint64(1):
                continue
            place = np.searchsorted(hashes, value)
            if place < len(hashes) and hashes[place] == value:
                if count < len(rows):
                    rows[count] = row
                    numbers[count] = place
                count += 1
    return count
