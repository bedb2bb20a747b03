"""A BPE vocabulary as tables that kernels read, and how one piece of text becomes ids by them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.corpus.words import mix
from model.kernels.jit import bare_helper, kernel

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio, odd: the usual multiplier of Fibonacci hashing."""
_ABSENT = np.uint32(0xFFFFFFFF)  # as a rank the highest: a pair that cannot merge is never the lowest


@dataclass(frozen=True)
class Merges:
    """A vocabulary as the kernels read it.

    data, offsets: the bytes of each token, end to end
    ids: (tokens,) the id of each, which is its merge rank
    by_hash: open-addressed hash table of the position of a token, by its bytes; -1 is free
    pairs, merged: open-addressed hash table of (left id << 32 | right id) -> id of both together; all ones is free
    single: (256,) id of each byte
    """

    data: U8
    offsets: I64
    ids: U32
    by_hash: NDArray[np.int32]
    pairs: U64
    merged: U32
    single: U32


def merges_of(ranks: Mapping[bytes, int]) -> Merges | None:
    """The tables of a vocabulary of bytes -> merge rank; None if it lacks one of the 256 single bytes."""
    if not all(bytes([byte]) in ranks for byte in range(256)):
        return None
    data = np.frombuffer(b"".join(ranks), np.uint8)
    offsets = np.cumsum([0, *map(len, ranks)], dtype=np.int64)
    ids = np.fromiter(ranks.values(), np.uint32, len(ranks))
    by_hash = np.full(table_size(2 * len(ranks)), -1, np.int32)  # half full at most
    # A token of n bytes can be joined from n - 1 pairs at most, so the table is never more than half full.
    # All ones is free: no vocabulary has the id 2^32 - 1.
    pairs = np.full(table_size(2 * int(offsets[-1])), ~np.uint64(0), np.uint64)
    merged = np.empty(len(pairs), np.uint32)
    _fill_tables(data, offsets, ids, by_hash, pairs, merged)
    single = np.array([ranks[bytes([byte])] for byte in range(256)], np.uint32)
    return Merges(data, offsets, ids, by_hash, pairs, merged, single)


def table_size(least: int) -> int:
    return 1 << max(10, (least - 1).bit_length())


@bare_helper
def signed(value: np.uint64) -> int:
    """As a place in an array: numba makes a float of a signed and an unsigned number together."""
    return np.int64(value)  # type: ignore[return-value]


@bare_helper
def hash_of(data: U8, start: int, end: int) -> np.uint64:
    value = np.uint64(end - start)  # its length, since leading zero bytes would not count
    for i in range(start, end):
        value = value * HASH_MULTIPLIER + np.uint64(data[i])
    return mix(value)


@bare_helper
def equal(left: U8, left_start: int, right: U8, right_start: int, length: int) -> bool:
    for i in range(length):  # noqa: SIM110 - numba compiles loops
        if left[left_start + i] != right[right_start + i]:
            return False
    return True


@bare_helper
def _find_token(
    data: U8, start: int, end: int, tokens: U8, offsets: I64, ids: U32, by_hash: NDArray[np.int32]
) -> np.uint32:
    """The id of the token with these bytes, or _ABSENT."""
    mask = len(by_hash) - 1
    slot = signed(hash_of(data, start, end) & np.uint64(mask))
    while by_hash[slot] >= 0:
        token = by_hash[slot]
        length = offsets[token + 1] - offsets[token]
        if length == end - start and equal(data, start, tokens, offsets[token], length):
            found: np.uint32 = ids[token]
            return found
        slot = (slot + 1) & mask
    return _ABSENT


@bare_helper
def _pair_slot(pairs: U64, pair: np.uint64) -> int:
    """Where this pair is, or would be put."""
    mask = len(pairs) - 1
    slot = signed(mix(pair) & np.uint64(mask))
    while pairs[slot] != pair and pairs[slot] != ~np.uint64(0):
        slot = (slot + 1) & mask
    return slot


@kernel("u1[:]", "i8[:]", "u4[:]", "out i4[:]", "out u8[:]", "out u4[:]")
def _fill_tables(data: U8, offsets: I64, ids: U32, by_hash: NDArray[np.int32], pairs: U64, merged: U32) -> None:
    mask = len(by_hash) - 1
    for token in range(len(ids)):
        slot = signed(hash_of(data, offsets[token], offsets[token + 1]) & np.uint64(mask))
        while by_hash[slot] >= 0:
            slot = (slot + 1) & mask
        by_hash[slot] = token
    for token in range(len(ids)):
        start, end = offsets[token], offsets[token + 1]
        for middle in range(start + 1, end):
            left = _find_token(data, start, middle, data, offsets, ids, by_hash)
            right = _find_token(data, middle, end, data, offsets, ids, by_hash)
            if left != _ABSENT and right != _ABSENT:
                pair = (np.uint64(left) << np.uint64(32)) | np.uint64(right)
                slot = _pair_slot(pairs, pair)
                pairs[slot] = pair
                merged[slot] = ids[token]


@bare_helper
def _merge(ids: U32, ranks: U32, count: int, pairs: U64, merged: U32) -> int:
    """Merge the leftmost pair of lowest rank until none is left; returns how many ids remain."""
    for k in range(count - 1):
        ranks[k] = _rank(ids[k], ids[k + 1], pairs, merged)
    # In place and quadratic: 9 of 10 pieces have less than 8 bytes, and few are merged twice.
    while count > 1:
        best = 0
        for k in range(1, count - 1):
            if ranks[k] < ranks[best]:
                best = k
        if ranks[best] == _ABSENT:
            break
        ids[best] = ranks[best]  # a token's id is its rank
        count -= 1
        for k in range(best + 1, count):
            ids[k] = ids[k + 1]
            ranks[k - 1] = ranks[k]
        if best > 0:
            ranks[best - 1] = _rank(ids[best - 1], ids[best], pairs, merged)
        if best < count - 1:
            ranks[best] = _rank(ids[best], ids[best + 1], pairs, merged)
    return count


@bare_helper
def _rank(left: np.uint32, right: np.uint32, pairs: U64, merged: U32) -> np.uint32:
    pair = (np.uint64(left) << np.uint64(32)) | np.uint64(right)
    slot = _pair_slot(pairs, pair)
    return merged[slot] if pairs[slot] == pair else _ABSENT


@bare_helper
def encode_piece(
    text: U8,
    place: int,
    stop: int,
    tokens: U8,
    token_offsets: I64,
    token_ids: U32,
    by_hash: NDArray[np.int32],
    pairs: U64,
    merged: U32,
    single: U32,
    ranks: U32,
    out: U32,
) -> int:
    """Write the ids of a piece to the start of `out`; returns their number. A whole token is never merged, as there."""
    whole = _find_token(text, place, stop, tokens, token_offsets, token_ids, by_hash)
    if whole != _ABSENT:
        out[0] = whole
        return 1
    for k in range(stop - place):
        out[k] = single[text[place + k]]
    return int(_merge(out, ranks, stop - place, pairs, merged))
