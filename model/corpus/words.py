"""Words and shingles of documents as 64-bit hashes, straight from Arrow buffers: no Python string per word.

A word is a run of letters, digits and underscores of the lower-cased text; a code point of a script that is written
without spaces (Han, kana, Thai, Lao, Khmer, Myanmar) and an emoji is a word by itself; all else separates. The classes
are spelt out here, not asked of `unicodedata`, so that an index does not depend on the Python that wrote it.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.kernels.jit import COMPILED, bare_helper, kernel

WORD_RULES = "words-1"
"""Name of the rules of this file; what is stored beside hashes made by it, and changes with any change to them."""

U64 = NDArray[np.uint64]
_CODE_POINTS = 0x110000
_SEPARATOR, _LETTER, _SINGLE = 0, 1, 2
_SEPARATOR_RANGES = (
    (0x80, 0xA9), (0xAB, 0xB4), (0xB6, 0xB9), (0xBB, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7),
    (0x37E, 0x37E), (0x387, 0x387), (0x55A, 0x55F), (0x589, 0x58A), (0x5BE, 0x5BE), (0x5C0, 0x5C0), (0x5C3, 0x5C3),
    (0x5F3, 0x5F4), (0x60C, 0x60D), (0x61B, 0x61F), (0x66A, 0x66D), (0x6D4, 0x6D4), (0x964, 0x965), (0xE4F, 0xE4F),
    (0xE5A, 0xE5B), (0x104A, 0x104F), (0x1360, 0x1368), (0x1680, 0x1680), (0x17D4, 0x17DA), (0x2000, 0x206F),
    (0x20A0, 0x20CF), (0x2190, 0x25FF), (0x27C0, 0x2BFF), (0x2E00, 0x2E7F), (0x3000, 0x3004), (0x3008, 0x3020),
    (0x3030, 0x3030), (0x303D, 0x303F), (0x30FB, 0x30FB), (0xFE00, 0xFE6F), (0xFEFF, 0xFEFF), (0xFF01, 0xFF0F),
    (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65), (0xFFE0, 0xFFFF),
)  # fmt: skip
_SINGLE_RANGES = (
    (0xE00, 0xE4E), (0xE50, 0xE59), (0xE80, 0xEFF), (0x1000, 0x1049), (0x1050, 0x109F), (0x1780, 0x17D3),
    (0x17DB, 0x17FF), (0x2600, 0x27BF), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x302F), (0x3031, 0x303C),
    (0x3040, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F), (0x1F000, 0x1FAFF), (0x20000, 0x3FFFF),
)  # fmt: skip

# Odd multipliers of two polynomial hashes modulo 2^64, over code points and over words (first digits of pi and e).
_P = np.uint64(0x3243F6A8885A308D)
_Q = np.uint64(0x2B7E151628AED2A7)
_MIX_1, _MIX_2, _MIX_SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)


@dataclass(frozen=True)
class Ragged:
    """One array of values a document, end to end: document i has `values[offsets[i]:offsets[i + 1]]`."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class TextBuffers:
    """The bytes of a large_string array: text i is `data[offsets[i]:offsets[i + 1]]`, valid UTF-8."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]


@cache
def code_point_classes() -> NDArray[np.uint8]:
    """Class of each code point: separator, part of a word, or a word by itself. (0x110000,)"""
    classes = np.full(_CODE_POINTS, _LETTER, np.uint8)
    classes[:128] = _SEPARATOR
    for character in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_":
        classes[ord(character)] = _LETTER
    for first, last in _SEPARATOR_RANGES:
        classes[first : last + 1] = _SEPARATOR
    for first, last in _SINGLE_RANGES:
        classes[first : last + 1] = _SINGLE
    classes.flags.writeable = False
    return classes


@cache
def ascii_letters() -> NDArray[np.uint8]:
    """The lower-cased word character of each ASCII byte, 0 for a separator. (128,)"""
    letters = np.arange(128, dtype=np.uint8)
    letters[ord("A") : ord("Z") + 1] += 32
    letters[code_point_classes()[:128] == _SEPARATOR] = 0
    letters.flags.writeable = False
    return letters


def buffers_of(texts: pa.LargeStringArray) -> TextBuffers:
    """View an Arrow array's buffers, without copying."""
    _, offsets, data = texts.buffers()
    offsets_view = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data_view = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    return TextBuffers(data_view, offsets_view if len(offsets_view) else np.zeros(1, np.int64))


def as_texts(column: Any) -> pa.LargeStringArray:
    """A column or a list of strings as one large_string array without nulls."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not isinstance(array, pa.Array):
        array = pa.array(array, pa.large_string())
    array = array.cast(pa.large_string())
    assert array.null_count == 0, "documents without text"
    return array


def lower_non_ascii(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Lower-case the texts that are not plain ASCII; the kernels lower-case ASCII themselves, 15 times faster."""
    ascii_only = pc.string_is_ascii(texts)
    if pc.all(ascii_only).as_py() is not False:  # None: no texts
        return texts
    other = pc.invert(ascii_only)
    return pc.replace_with_mask(texts, other, pc.utf8_lower(texts.filter(other)))


def shingles(texts: pa.LargeStringArray, words: int) -> Ragged:
    """64-bit hashes of each run of `words` words, in order; a shorter text has one, of all its words, or none."""
    return _shingles_compiled(texts, words) if COMPILED else shingles_plain(texts, words)


def _shingles_compiled(texts: pa.LargeStringArray, words: int) -> Ragged:
    buffers = buffers_of(lower_non_ascii(texts))
    out = np.empty(int(buffers.offsets[-1] - buffers.offsets[0]) // 2 + 2 * len(texts), np.uint64)
    ends = np.zeros(len(texts) + 1, np.int64)
    _shingles_kernel(buffers.data, buffers.offsets, ascii_letters(), code_point_classes(), words, out, ends)
    return Ragged(out[: ends[-1]].copy(), ends)


def shingles_plain(texts: pa.LargeStringArray, words: int) -> Ragged:
    """`shingles` by numpy alone, bit for bit: prefix sums of a polynomial hash, differences at the word borders."""
    found = [_shingles_of_words(_word_hashes_plain(text), words) for text in lower_non_ascii(texts).to_pylist()]
    ends = np.concatenate([[0], np.cumsum([len(f) for f in found], dtype=np.int64)]).astype(np.int64)
    return Ragged(np.concatenate(found) if found else np.empty(0, np.uint64), ends)


def _code_points(text: str) -> NDArray[np.uint32]:
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32).copy()  # bytes are read-only
    points[(points >= ord("A")) & (points <= ord("Z"))] += 32
    return points


def word_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each word of a text in characters."""
    classes = code_point_classes()[_code_points(text)]
    if not len(classes):
        return []
    before = np.concatenate([[_SEPARATOR], classes[:-1]])
    after = np.concatenate([classes[1:], [_SEPARATOR]])
    starts = np.flatnonzero((classes != _SEPARATOR) & ((before != _LETTER) | (classes == _SINGLE)))
    ends = np.flatnonzero((classes != _SEPARATOR) & ((after != _LETTER) | (classes == _SINGLE))) + 1
    return list(zip(starts.tolist(), ends.tolist()))


def words_of(text: str) -> list[str]:
    """The words themselves, lower-cased as the hashes are."""
    lowered = pc.utf8_lower(pa.scalar(text)).as_py()
    return [lowered[start:end] for start, end in word_spans(lowered)]


def _word_hashes_plain(text: str) -> U64:
    points = _code_points(text).astype(np.uint64)
    spans = np.array(word_spans(text), np.int64).reshape(-1, 2)
    inverse = np.uint64(pow(int(_P), -1, 1 << 64))  # exists, since _P is odd
    with np.errstate(over="ignore"):
        falling = np.multiply.accumulate(np.full(len(points) + 1, inverse, np.uint64)) * _P
        rising = np.multiply.accumulate(np.full(len(points) + 1, _P, np.uint64)) * inverse
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(points * falling[:-1], dtype=np.uint64)])
        return mix64((sums[spans[:, 1]] - sums[spans[:, 0]]) * rising[spans[:, 1] - 1])


def _shingles_of_words(hashes: U64, words: int) -> U64:
    if not len(hashes):
        return hashes
    width = min(words, len(hashes))
    windows = np.lib.stride_tricks.sliding_window_view(hashes, width)
    total = np.zeros(len(windows), np.uint64)
    with np.errstate(over="ignore"):
        for position in range(width):
            total = total * _Q + windows[:, position]
        return mix64(total)


def mix64(values: U64) -> U64:
    """MurmurHash3's 64-bit finalizer, element by element."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> _MIX_SHIFT)) * _MIX_1
        values = (values ^ (values >> _MIX_SHIFT)) * _MIX_2
        return values ^ (values >> _MIX_SHIFT)


@bare_helper
def mix(value: np.uint64) -> np.uint64:
    """`mix64` of one value, in kernels."""
    value = (value ^ (value >> _MIX_SHIFT)) * _MIX_1
    value = (value ^ (value >> _MIX_SHIFT)) * _MIX_2
    return value ^ (value >> _MIX_SHIFT)


@bare_helper
def utf8_width(lead: int) -> int:
    """Bytes of the code point that starts with this byte."""
    if lead < 0x80:
        return 1
    if lead < 0xE0:
        return 2
    return 3 if lead < 0xF0 else 4


@bare_helper
def utf8_code_point(data: NDArray[np.uint8], i: int, width: int) -> int:
    """The code point of `width` bytes at data[i]; the text is valid UTF-8."""
    if width == 1:
        return int(data[i])
    point = int(data[i]) & (0x7F >> width)
    for k in range(1, width):
        point = (point << 6) | (int(data[i + k]) & 0x3F)
    return point


@bare_helper
def hash_words(text: NDArray[np.uint8], letters: NDArray[np.uint8], classes: NDArray[np.uint8], out: U64) -> int:
    """Write the hash of each word of a text to `out`, which has room for len(text) // 2 + 2; returns their number.

    For ASCII it has no branch but the loop's: each byte stores the hash so far, and a word's end moves the place on.
    That is 1.7 times as fast as branching at each of the two borders of a word, which no predictor can foresee.
    """
    count = 0
    value = np.uint64(0)
    before = np.uint8(0)
    for i in range(len(text)):
        byte = text[i]
        if byte < 128:
            letter = letters[byte]
            inside = np.uint8(letter != 0)
            count += int(before & (inside ^ np.uint8(1)))
            value = (value * _P + np.uint64(letter)) if inside else np.uint64(0)
            out[count] = value
            before = inside
        elif byte >= 0xC0:
            point = utf8_code_point(text, i, utf8_width(byte))
            kind = classes[point]
            if kind == 1:
                value = value * _P + np.uint64(point)
                out[count] = value
                before = np.uint8(1)
                continue
            count += int(before)
            value = np.uint64(0)
            before = np.uint8(0)
            if kind == 2:
                out[count] = np.uint64(point)
                count += 1
    count += int(before)
    for k in range(count):
        out[k] = mix(out[k])
    return count


@bare_helper
def shingle_in_place(hashes: U64, count: int, words: int) -> int:
    """Replace the word hashes hashes[:count] by shingle hashes; returns their number."""
    if count == 0:
        return 0
    width = min(words, count)  # a short text is one shingle of all its words
    shingled = count - width + 1
    for i in range(shingled):
        total = hashes[i]
        for k in range(1, width):
            total = total * _Q + hashes[i + k]
        hashes[i] = total
    for i in range(shingled):
        hashes[i] = mix(hashes[i])
    return shingled


@kernel("u1[:]", "i8[:]", "u1[:]", "u1[:]", "i8", "out u8[:]", "out i8[:]")
def _shingles_kernel(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    letters: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    words: int,
    out: U64,
    ends: NDArray[np.int64],
) -> None:
    for row in range(len(offsets) - 1):
        room = out[ends[row] :]
        count = hash_words(data[offsets[row] : offsets[row + 1]], letters, classes, room)
        ends[row + 1] = ends[row] + shingle_in_place(room, count, words)
