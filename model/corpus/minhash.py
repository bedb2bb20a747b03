"""MinHash signatures of whole columns of text, bit-equal to datasketch's `affine32`, and what is computed from them.

Broder 1997 (the sketch), Leskovec et al. "Mining of Massive Datasets" ch. 3 (bands). datasketch 2.0 defines the
permutations: h -> a*fmix32(h) + b mod 2^32 with odd a, so signatures can be exchanged with it as `LeanMinHash`.
"""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.corpus.words import (
    U64,
    Ragged,
    ascii_letters,
    buffers_of,
    code_point_classes,
    hash_words,
    lower_non_ascii,
    mix64,
    shingle_in_place,
    shingles_plain,
)
from model.kernels.jit import COMPILED, bare_helper, kernel

if TYPE_CHECKING:
    from datasketch import LeanMinHash

SCHEME = "affine32"  # compiled ten times as fast as the 61-bit prime of datasketch 1 (137,000 for 13,300 documents/s)
EMPTY = np.uint32(0xFFFFFFFF)
"""Value of each row of the signature of a document without words, as in datasketch."""

U32 = NDArray[np.uint32]
SLICE_BYTES = 16_000_000


@cache
def permutations(count: int, seed: int) -> U32:
    """Parameters (a, b) of datasketch's permutations for this seed. (2, count)"""
    generator = np.random.RandomState(seed)  # datasketch's; numpy keeps its stream as it is for ever
    # Odd, so that multiplying by it permutes the 2^32 values.
    a = generator.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return np.array([a, generator.randint(0, 1 << 32, count, dtype=np.uint32)])


def signatures(texts: pa.LargeStringArray, words: int, count: int, seed: int) -> U32:
    """MinHash signatures over shingles of `words` words. (documents, count)"""
    if not COMPILED:
        return signatures_plain(texts, words, count, seed)
    buffers = buffers_of(lower_non_ascii(texts))
    out = np.empty((len(texts), count), np.uint32)
    a, b = permutations(count, seed)
    _signatures_kernel(buffers.data, buffers.offsets, ascii_letters(), code_point_classes(), words, a, b, out)
    return out


def signatures_plain(texts: pa.LargeStringArray, words: int, count: int, seed: int) -> U32:
    """`signatures` by numpy alone, bit for bit."""
    shingled = shingles_plain(texts, words)
    return _sign_plain(Ragged(shingle_hash32(shingled.values), shingled.offsets), count, seed)


def sign(hashes: Ragged, count: int, seed: int) -> U32:
    """Signatures of shingles that are hashed to 32 bits already. (documents, count)"""
    if not COMPILED:
        return _sign_plain(hashes, count, seed)
    out = np.empty((len(hashes), count), np.uint32)
    a, b = permutations(count, seed)
    _sign_kernel(hashes.values, hashes.offsets, a, b, out)
    return out


def _sign_plain(hashes: Ragged, count: int, seed: int) -> U32:
    out = np.full((len(hashes), count), EMPTY, np.uint32)
    a, b = permutations(count, seed)
    for row in range(len(hashes)):
        mixed = _fmix32(hashes[row])
        # Permutation by permutation keeps the memory at one value a shingle, also for a book of 50 MB.
        for k in range(count if len(mixed) else 0):
            out[row, k] = (mixed * a[k] + b[k]).min()
    return out


def shingle_sets(texts: pa.LargeStringArray, words: int) -> Ragged:
    """The distinct 32-bit shingle hashes of each text, ascending: what its signature is of, and real similarity."""
    parts = [_shingle_sets(part, words) for part in _slices(texts)]
    offsets = [np.zeros(1, np.int64)]
    for part in parts:
        offsets.append(part.offsets[1:] + offsets[-1][-1])
    values = np.concatenate([np.empty(0, np.uint32), *(part.values for part in parts)])
    return Ragged(values, np.concatenate(offsets))


def _slices(texts: pa.LargeStringArray) -> Iterator[pa.LargeStringArray]:
    """Runs of documents of about SLICE_BYTES, as 64-bit shingles take up to four times the memory of their text."""
    offsets = buffers_of(texts).offsets
    start = 0
    while start < len(texts):
        end = max(int(np.searchsorted(offsets, offsets[start] + SLICE_BYTES)), start + 1)
        yield texts.slice(start, min(end, len(texts)) - start)
        start = end


def _shingle_sets(texts: pa.LargeStringArray, words: int) -> Ragged:
    if not COMPILED:
        shingled = shingles_plain(texts, words)
        values = shingle_hash32(shingled.values)
        rows = [np.unique(values[start:end]) for start, end in pairwise(shingled.offsets.tolist())]
        ends = np.cumsum([0, *map(len, rows)]).astype(np.int64)
        return Ragged(np.concatenate([np.empty(0, np.uint32), *rows]), ends)
    buffers = buffers_of(lower_non_ascii(texts))
    out = np.empty(int(buffers.offsets[-1] - buffers.offsets[0]) // 2 + 2 * len(texts), np.uint32)
    ends = np.zeros(len(texts) + 1, np.int64)
    _shingle_sets_kernel(buffers.data, buffers.offsets, ascii_letters(), code_point_classes(), words, out, ends)
    return Ragged(out[: ends[-1]], ends)


@bare_helper
def _radix_sort(values: U32, other: U32, count: int, starts: NDArray[np.int64]) -> None:
    """Sort values[:count] byte by byte from the lowest: twice as fast as comparing for the 600 of a page."""
    starts[:] = 0
    for i in range(count):
        for byte in range(4):
            starts[byte, (values[i] >> np.uint32(8 * byte)) & np.uint32(255)] += 1
    for byte in range(4):
        total = 0
        for k in range(256):
            total, starts[byte, k] = total + starts[byte, k], total
    for byte in range(4):
        shift = np.uint32(8 * byte)
        for i in range(count):
            digit = (values[i] >> shift) & np.uint32(255)
            other[starts[byte, digit]] = values[i]
            starts[byte, digit] += 1
        values, other = other, values  # four times: the result is where it began


@kernel("u1[:]", "i8[:]", "u1[:]", "u1[:]", "i8", "out u4[:]", "out i8[:]")
def _shingle_sets_kernel(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    letters: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    words: int,
    out: U32,
    ends: NDArray[np.int64],
) -> None:
    """Document by document, so that all but the result stays in the processor's cache."""
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    # A word and what separates it take two bytes, a word of one code point three.
    hashes = np.empty(longest // 2 + 2, np.uint64)
    values = np.empty(longest // 2 + 2, np.uint32)
    other = np.empty(longest // 2 + 2, np.uint32)
    starts = np.empty((4, 256), np.int64)  # of the four bytes, counted in one pass
    place = 0
    for row in range(len(offsets) - 1):
        count = hash_words(data[offsets[row] : offsets[row + 1]], letters, classes, hashes)
        count = shingle_in_place(hashes, count, words)
        for i in range(count):
            values[i] = np.uint32(hashes[i] >> np.uint64(32))  # as `shingle_hash32`
        _radix_sort(values, other, count, starts)
        for i in range(count):
            out[place] = values[i]
            place += int(i + 1 == count or values[i + 1] != values[i])
        ends[row + 1] = place


def shingle_hash32(values: U64) -> U32:
    """The 32 bits of shingle hashes that go into MinHash: what datasketch's `hashfunc` has to return."""
    return (values >> np.uint64(32)).astype(np.uint32)


def _fmix32(h: U32) -> U32:
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)  # MurmurHash3's 32-bit finalizer
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


@bare_helper
def _fmix(h: np.uint32) -> np.uint32:
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@bare_helper
def _lowest(mixed: U32, count: int, a: U32, b: U32, out: U32) -> None:
    """Permutations outside, shingles inside: the minimum stays in a register, twice as fast as the other way round."""
    for k in range(len(a)):
        lowest = np.uint32(0xFFFFFFFF)
        for i in range(count):
            value = np.uint32(mixed[i] * a[k] + b[k])
            lowest = min(lowest, value)
        out[k] = lowest


@kernel("u1[:]", "i8[:]", "u1[:]", "u1[:]", "i8", "u4[:]", "u4[:]", "out u4[:,:]")
def _signatures_kernel(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    letters: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    words: int,
    a: U32,
    b: U32,
    out: U32,
) -> None:
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    scratch = np.empty(longest // 2 + 2, np.uint64)  # as in _shingle_sets_kernel
    mixed = np.empty(longest // 2 + 2, np.uint32)
    for row in range(len(offsets) - 1):
        count = hash_words(data[offsets[row] : offsets[row + 1]], letters, classes, scratch)
        count = shingle_in_place(scratch, count, words)
        for i in range(count):
            mixed[i] = _fmix(np.uint32(scratch[i] >> np.uint64(32)))
        _lowest(mixed, count, a, b, out[row])


@kernel("u4[:]", "i8[:]", "u4[:]", "u4[:]", "out u4[:,:]")
def _sign_kernel(values: U32, offsets: NDArray[np.int64], a: U32, b: U32, out: U32) -> None:
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    mixed = np.empty(longest, np.uint32)
    for row in range(len(offsets) - 1):
        count = offsets[row + 1] - offsets[row]
        for i in range(count):
            mixed[i] = _fmix(values[offsets[row] + i])
        _lowest(mixed, count, a, b, out[row])


def band_keys(signature: U32, bands: int, rows: int) -> U64:
    """One 64-bit key a band: documents that share a key are candidates. (bands, documents)"""
    assert signature.shape[1] == bands * rows, f"{signature.shape[1]} permutations are not {bands} x {rows}"
    keys = np.zeros((bands, len(signature)), np.uint64)
    with np.errstate(over="ignore"):
        for band in range(bands):
            for row in range(rows):
                keys[band] = keys[band] * np.uint64(0x9E3779B97F4A7C15) + signature[:, band * rows + row]
    return mix64(keys)


def jaccard(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Exact Jaccard similarity of two sets of shingle hashes; 0 where both are empty."""
    union = np.union1d(left, right).size
    return np.intersect1d(left, right).size / union if union else 0.0


def to_lean(signature: U32, seed: int) -> "LeanMinHash":
    """One signature as datasketch's exchange format. (permutations,)"""
    from datasketch import LeanMinHash

    return LeanMinHash(seed=seed, hashvalues=signature, scheme=SCHEME)


def from_lean(sketches: "list[LeanMinHash]", seed: int) -> U32:
    """Signatures from datasketch's exchange format. (documents, permutations)

    Raises:
        ValueError: a sketch has another scheme or seed: its values cannot be compared with ours.
    """
    for position, sketch in enumerate(sketches):
        # datasketch 1 and 2 have other defaults, and values of two schemes would compare without an error.
        if (sketch.scheme, sketch.seed) != (SCHEME, seed):
            raise ValueError(
                f"LeanMinHash {position} has scheme {sketch.scheme!r} and seed {sketch.seed}, expected {SCHEME!r} and "
                f"{seed}: sign its documents again with datasketch 2 and this seed."
            )
    return np.array([sketch.hashvalues for sketch in sketches], np.uint32)
