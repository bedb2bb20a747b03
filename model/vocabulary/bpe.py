"""Byte-level BPE over whole columns of text, id for id what tiktoken gives, several times as fast.

Words repeat (Zipf), so each distinct piece of a column is merged once and then found again in a hash table whose
entries point at its first occurrence in the text and at the ids written for it there: nothing is stored twice. Text is
read from Arrow's buffers and ids are written to one array, so no Python object is made for a document or a token. What
model/vocabulary/pieces.py does not cut (code points that Python's Unicode does not assign, pieces of more than 256
bytes) is marked, and the caller gives those texts to tiktoken.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.corpus.words import Ragged, buffers_of, mix
from model.kernels.jit import bare_helper, kernel
from model.vocabulary.pieces import classify, piece_classes, piece_end

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

LONGEST_PIECE = 256
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HALF, _LOW = np.uint64(16), np.uint64(0xFFFF)
_LONG = np.uint64(8 << 56)
_ABSENT = np.uint32(0xFFFFFFFF)
_MOST_CACHED = 1 << 21


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
    by_hash = np.full(_table_size(2 * len(ranks)), -1, np.int32)
    # A token of n bytes can be joined from n - 1 pairs at most, so the table is never more than half full.
    pairs = np.full(_table_size(2 * int(offsets[-1])), ~np.uint64(0), np.uint64)
    merged = np.empty(len(pairs), np.uint32)
    _fill_tables(data, offsets, ids, by_hash, pairs, merged)
    single = np.array([ranks[bytes([byte])] for byte in range(256)], np.uint32)
    return Merges(data, offsets, ids, by_hash, pairs, merged, single)


def _table_size(least: int) -> int:
    return 1 << max(10, (least - 1).bit_length())


@dataclass(frozen=True)
class Encoded:
    """The ids of each text, and which texts were not encoded to their end: their ids mean nothing. (texts,)"""

    ids: Ragged
    unknown: NDArray[np.bool_]


def encode_column(texts: pa.LargeStringArray, merges: Merges) -> Encoded:
    """The ids of each text, cut by Qwen2's pattern."""
    buffers = buffers_of(texts)
    size = int(buffers.offsets[-1] - buffers.offsets[0])
    out = np.empty(size, np.uint32)  # a token has at least one byte; pages that are not written take no memory
    ends = np.zeros(len(texts) + 1, np.int64)
    unknown = np.zeros(len(texts), np.bool_)
    slots = np.zeros((_table_size(min(size // 64, _MOST_CACHED)) + 1, 3), np.uint64)
    _encode_kernel(
        buffers.data, buffers.offsets, piece_classes(), merges.data, merges.offsets, merges.ids, merges.by_hash,
        merges.pairs, merges.merged, merges.single, slots, out, ends, unknown,
    )  # fmt: skip
    return Encoded(Ragged(out[: ends[-1]], ends), unknown)


@bare_helper
def _signed(value: np.uint64) -> int:
    """As a place in an array: numba makes a float of a signed and an unsigned number together."""
    return np.int64(value)  # type: ignore[return-value]


@bare_helper
def _hash(data: U8, start: int, end: int) -> np.uint64:
    value = np.uint64(end - start)
    for i in range(start, end):
        value = value * _MULTIPLIER + np.uint64(data[i])
    return mix(value)


@bare_helper
def _key(text: U8, last_eight: U64, start: int, end: int) -> np.uint64:
    """What tells a piece from others: its bytes themselves and their number up to 7 bytes, else 8 and 56 bits of hash.

    So only a long piece has to be compared with the bytes of the one that was found; 9 of 10 pieces are short.
    """
    length = end - start
    if length < 8:
        bits = np.uint64(8 * length)
        return np.uint64((np.uint64(length) << bits) | (last_eight[end - 1] & ((np.uint64(1) << bits) - np.uint64(1))))
    if length <= 16:
        value = mix(last_eight[start + 7] + np.uint64(length)) * _MULTIPLIER + last_eight[end - 1]
        return np.uint64((mix(value) >> np.uint64(8)) | _LONG)
    return (_hash(text, start, end) >> np.uint64(8)) | _LONG


@bare_helper
def _equal(left: U8, left_start: int, right: U8, right_start: int, length: int) -> bool:
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
    slot = _signed(_hash(data, start, end) & np.uint64(mask))
    while by_hash[slot] >= 0:
        token = by_hash[slot]
        length = offsets[token + 1] - offsets[token]
        if length == end - start and _equal(data, start, tokens, offsets[token], length):
            found: np.uint32 = ids[token]
            return found
        slot = (slot + 1) & mask
    return _ABSENT


@bare_helper
def _pair_slot(pairs: U64, pair: np.uint64) -> int:
    """Where this pair is, or would be put."""
    mask = len(pairs) - 1
    slot = _signed(mix(pair) & np.uint64(mask))
    while pairs[slot] != pair and pairs[slot] != ~np.uint64(0):
        slot = (slot + 1) & mask
    return slot


@kernel("u1[:]", "i8[:]", "u4[:]", "out i4[:]", "out u8[:]", "out u4[:]")
def _fill_tables(data: U8, offsets: I64, ids: U32, by_hash: NDArray[np.int32], pairs: U64, merged: U32) -> None:
    mask = len(by_hash) - 1
    for token in range(len(ids)):
        slot = _signed(_hash(data, offsets[token], offsets[token + 1]) & np.uint64(mask))
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
def _encode_piece(
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


@bare_helper
def _encode_text(
    data: U8,
    offset: int,
    text: U8,
    kinds: U8,
    last_eight: U64,
    tokens: U8,
    token_offsets: I64,
    token_ids: U32,
    by_hash: NDArray[np.int32],
    pairs: U64,
    merged: U32,
    single: U32,
    ranks: U32,
    slots: U64,
    out: U32,
    written: int,
) -> int:
    """Write the ids of the text at data[offset]; returns the end of all that is written, negative if it gave up.

    A slot: `_key` of the piece (0: free), its place in `data` << 16 | its bytes, that in `out` << 16 | its ids. The
    last slot counts those in use: pieces are no longer remembered when half of them are.
    """
    mask = len(slots) - 2
    place = 0
    while place < len(text):
        stop = piece_end(text, kinds, place)
        length = stop - place
        if stop < 0 or length > LONGEST_PIECE:
            return -written - 1  # its ids so far stay where they are, since slots point at them
        key = _key(text, last_eight, place, stop)
        slot = _signed(mix(key) & np.uint64(mask))
        while slots[slot, 0] != 0 and not (
            slots[slot, 0] == key
            and (
                length < 8
                or (
                    _signed(slots[slot, 1] & _LOW) == length
                    and _equal(data, offset + place, data, _signed(slots[slot, 1] >> _HALF), length)
                )
            )
        ):
            slot = (slot + 1) & mask
        if slots[slot, 0] != 0:
            source = _signed(slots[slot, 2] >> _HALF)
            count = _signed(slots[slot, 2] & _LOW)
            for k in range(count):
                out[written + k] = out[source + k]
        else:
            count = int(
                _encode_piece(
                    text, place, stop, tokens, token_offsets, token_ids, by_hash, pairs, merged, single, ranks,
                    out[written:],
                )
            )  # fmt: skip
            if slots[mask + 1, 0] < np.uint64(mask // 2):
                slots[mask + 1, 0] += np.uint64(1)
                slots[slot, 0] = key
                slots[slot, 1] = (np.uint64(offset + place) << _HALF) | np.uint64(length)
                slots[slot, 2] = (np.uint64(written) << _HALF) | np.uint64(count)
        written += count
        place = stop
    return int(written)


@kernel(
    "u1[:]", "i8[:]", "u1[:]", "u1[:]", "i8[:]", "u4[:]", "i4[:]", "u8[:]", "u4[:]", "u4[:]",
    "out u8[:,:]", "out u4[:]", "out i8[:]", "out b1[:]",
)  # fmt: skip
def _encode_kernel(
    data: U8,
    offsets: I64,
    classes: U8,
    tokens: U8,
    token_offsets: I64,
    token_ids: U32,
    by_hash: NDArray[np.int32],
    pairs: U64,
    merged: U32,
    single: U32,
    slots: U64,
    out: U32,
    ends: I64,
    unknown: NDArray[np.bool_],
) -> None:
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    ranks = np.empty(LONGEST_PIECE, np.uint32)
    kinds = np.empty(longest + 1, np.uint8)
    last_eight = np.empty(longest, np.uint64)
    written = 0
    for row in range(len(offsets) - 1):
        text = data[offsets[row] : offsets[row + 1]]
        classify(text, classes, kinds, last_eight)
        written = _encode_text(
            data, offsets[row], text, kinds, last_eight, tokens, token_offsets, token_ids, by_hash, pairs, merged,
            single, ranks, slots, out, written,
        )  # fmt: skip
        if written < 0:
            unknown[row] = True
            written = -written - 1
        ends[row + 1] = written
