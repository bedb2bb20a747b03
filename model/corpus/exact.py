"""Exact duplicates: a 128-bit hash of the text without regard to case and white space."""

import re

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from model.corpus.words import buffers_of, lower_non_ascii
from model.kernels.jit import COMPILED, kernel

_BLANKS = re.compile(rb"[\x00-\x20]+")


def text_hashes(texts: pa.LargeStringArray) -> NDArray[np.uint64]:
    """xxh3_128 of each lower-cased text, runs of ASCII blanks as one space and none at the ends. (documents, 2)"""
    lowered = lower_non_ascii(texts)
    if not COMPILED:
        return text_hashes_plain(texts)
    buffers = buffers_of(lowered)
    out = np.empty(int(buffers.offsets[-1] - buffers.offsets[0]) + 1, np.uint8)
    ends = np.zeros(len(texts) + 1, np.int64)
    _squeeze_kernel(buffers.data, buffers.offsets, out, ends)
    view = out.data  # slices of it copy nothing
    return _as_array([xxhash.xxh3_128_digest(view[ends[i] : ends[i + 1]]) for i in range(len(texts))])


def text_hashes_plain(texts: pa.LargeStringArray) -> NDArray[np.uint64]:
    """`text_hashes` in plain Python, bit for bit."""
    # Bytes lower ASCII alone, as the kernel does.
    raw = [text.encode().lower() for text in lower_non_ascii(texts).to_pylist()]
    return _as_array([xxhash.xxh3_128_digest(_BLANKS.sub(b" ", text).strip(b" ")) for text in raw])


def _as_array(digests: list[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


@kernel("u1[:]", "i8[:]", "out u1[:]", "out i8[:]")
def _squeeze_kernel(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], out: NDArray[np.uint8], ends: NDArray[np.int64]
) -> None:
    place = 0
    for row in range(len(offsets) - 1):
        text = data[offsets[row] : offsets[row + 1]]
        start = place
        after_blank = True
        for i in range(len(text)):
            byte = text[i]
            blank = byte <= 32
            # Without a branch: a byte is always written, and kept unless it is a blank after a blank.
            out[place] = 32 if blank else byte + 32 * (65 <= byte <= 90)
            place += 1 - int(blank and after_blank)
            after_blank = blank
        if after_blank and place > start:
            place -= 1
        ends[row + 1] = place
