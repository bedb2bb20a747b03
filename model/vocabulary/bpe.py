"""Byte-level BPE over whole columns of text, id for id what tiktoken gives, several times as fast.

Words repeat (Zipf), so each distinct piece of a column is merged once and then found again in a hash table whose
entries point at its first occurrence in the text and at the ids written for it there: nothing is stored twice. Text is
read from Arrow's buffers and ids are written to one array, so no Python object is made for a document or a token. What
model/vocabulary/pieces.py does not cut (code points that Python's Unicode does not assign, pieces of more than 256
bytes) is marked, and the caller gives those texts to tiktoken.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.corpus.words import Ragged, buffers_of, mix
from model.kernels.jit import bare_helper, kernel
from model.vocabulary.merges import (
    HASH_MULTIPLIER,
    I64,
    U8,
    U32,
    U64,
    Merges,
    encode_piece,
    equal,
    hash_of,
    signed,
    table_size,
)
from model.vocabulary.pieces import classify, piece_classes, piece_end

LONGEST_PIECE = 256  # merging is quadratic in a piece
# 16 bits hold a piece's bytes and its ids, of which there are no more; 48 are left for its place.
_HALF, _LOW = np.uint64(16), np.uint64(0xFFFF)
_LONG = np.uint64(8 << 56)  # above the length in any short key, which is 7 << 56 at most
_MOST_CACHED = 1 << 21  # slots of 24 bytes: 50 MB


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
    slots = np.zeros((table_size(min(size // 64, _MOST_CACHED)) + 1, 3), np.uint64)
    _encode_kernel(
        buffers.data, buffers.offsets, piece_classes(), merges.data, merges.offsets, merges.ids, merges.by_hash,
        merges.pairs, merges.merged, merges.single, slots, out, ends, unknown,
    )  # fmt: skip
    return Encoded(Ragged(out[: ends[-1]], ends), unknown)


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
        value = mix(last_eight[start + 7] + np.uint64(length)) * HASH_MULTIPLIER + last_eight[end - 1]
        return np.uint64((mix(value) >> np.uint64(8)) | _LONG)
    return (hash_of(text, start, end) >> np.uint64(8)) | _LONG


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
    mask = len(slots) - 2  # the last slot counts
    place = 0
    while place < len(text):
        stop = piece_end(text, kinds, place)
        length = stop - place
        if stop < 0 or length > LONGEST_PIECE:
            return -written - 1  # its ids so far stay where they are, since slots point at them
        key = _key(text, last_eight, place, stop)
        slot = signed(mix(key) & np.uint64(mask))
        while slots[slot, 0] != 0 and not (
            slots[slot, 0] == key
            and (
                length < 8
                or (
                    signed(slots[slot, 1] & _LOW) == length
                    and equal(data, offset + place, data, signed(slots[slot, 1] >> _HALF), length)
                )
            )
        ):
            slot = (slot + 1) & mask
        if slots[slot, 0] != 0:
            source = signed(slots[slot, 2] >> _HALF)
            count = signed(slots[slot, 2] & _LOW)
            for k in range(count):
                out[written + k] = out[source + k]
        else:
            count = int(
                encode_piece(
                    text, place, stop, tokens, token_offsets, token_ids, by_hash, pairs, merged, single, ranks,
                    out[written:],
                )
            )  # fmt: skip
            # Half full, so that a look-up soon meets the piece or a free slot.
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
