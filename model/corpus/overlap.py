"""How much of a held-out token sequence stands in the training tokens too, by shared runs of tokens.

Method of Llama 2 (arXiv:2307.09288, appendix A.6): a token is contaminated if it lies in a run of more than 10 tokens
that occurs in both. Runs are compared by 64-bit hashes; two different runs agree with a probability of 2^-64 a pair.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model.kernels.jit import COMPILED, kernel

RUN_TOKENS = 11  # "more than 10"
_BASE = np.uint64(0x9E3779B97F4A7C15)
_TABLE_BITS = 22  # 4 MB of flags
_HALF, _SHIFT = np.uint64(32), np.uint64(64 - _TABLE_BITS)
_CHUNK = 1 << 21  # 16 MB of hashes at a time

U64 = NDArray[np.uint64]


def run_hashes(tokens: NDArray[np.unsignedinteger]) -> U64:
    """A polynomial hash of each run of RUN_TOKENS tokens: (max(tokens - RUN_TOKENS + 1, 0),)."""
    runs = max(len(tokens) - RUN_TOKENS + 1, 0)
    found = np.zeros(runs, np.uint64)
    wide = tokens.astype(np.uint64) + np.uint64(1)
    for place in range(RUN_TOKENS):
        found *= _BASE
        found += wide[place : place + runs]
    found ^= found >> _HALF
    return found * _BASE


def _chunks(tokens: NDArray[np.unsignedinteger]) -> Iterator[NDArray[np.unsignedinteger]]:
    for start in range(0, len(tokens), _CHUNK):
        yield tokens[start : start + _CHUNK + RUN_TOKENS - 1]  # and the runs that cross its end


def seen_runs(wanted: U64, tokens: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    """Which of the `wanted` hashes (ascending, distinct) are of a run in `tokens`: (wanted,).

    A table of 2^22 flags tells most runs apart before they are looked up.
    """
    table = np.zeros(1 << _TABLE_BITS, np.bool_)
    table[wanted >> _SHIFT] = True  # by the top bits, which the last multiplication has mixed best
    seen = np.zeros(len(wanted), np.bool_)
    for chunk in _chunks(tokens):
        likely = _likely_runs(chunk, table)
        places = np.minimum(np.searchsorted(wanted, likely), max(len(wanted) - 1, 0))
        hits = wanted[places] == likely if len(wanted) else np.zeros(len(likely), np.bool_)
        seen[places[hits]] = True
    return seen


def _likely_runs(tokens: NDArray[np.unsignedinteger], table: NDArray[np.bool_]) -> U64:
    """The hashes of the runs whose flag is set."""
    if COMPILED:
        found = np.empty(max(len(tokens) - RUN_TOKENS + 1, 0), np.uint64)
        return found[: _roll(tokens.astype(np.uint32), table, found)]
    hashes = run_hashes(tokens)
    likely: U64 = hashes[table[hashes >> _SHIFT]]
    return likely


@kernel("u4[:]", "b1[:]", "out u8[:]")
def _roll(tokens: NDArray[np.uint32], table: NDArray[np.bool_], found: U64) -> int:
    """`run_hashes`, each from the one before, of which those whose flag is set are kept; their number."""
    one = np.uint64(1)
    leaving = one
    for _ in range(RUN_TOKENS):
        leaving *= _BASE
    value = np.uint64(0)
    count = 0
    for i in range(len(tokens)):
        value = value * _BASE + np.uint64(tokens[i]) + one
        if i >= RUN_TOKENS:
            # A rolling hash (Rabin and Karp): the token that leaves has been multiplied RUN_TOKENS times since it came.
            value -= (np.uint64(tokens[i - RUN_TOKENS]) + one) * leaving
        if i >= RUN_TOKENS - 1:
            key = (value ^ (value >> _HALF)) * _BASE
            if table[key >> _SHIFT]:
                found[count] = key
                count += 1
    return count


def covered_tokens(hashes: U64, wanted: U64, seen: NDArray[np.bool_], length: int) -> int:
    """How many of a document's `length` tokens lie in a seen run; `hashes` are those of its runs."""
    steps = np.zeros(length + 1, np.int64)
    starts = np.flatnonzero(seen[np.searchsorted(wanted, hashes)]) if len(hashes) else np.empty(0, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + RUN_TOKENS, -1)
    return int((np.cumsum(steps[:-1]) > 0).sum())
