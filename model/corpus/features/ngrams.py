"""Features of words and runs of words that occurred before.

First the definition in plain Python, the oracle of the kernel and its stand-in; then the same, compiled.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.corpus.features.characters import I32, LETTER, WORD_BASE, share
from model.corpus.features.repetition import slot_of, table_size
from model.corpus.features.words import has_class
from model.corpus.words import U64
from model.kernels.jit import bare_helper

SHORTEST_NGRAM, LONGEST_TOP_NGRAM, LONGEST_NGRAM = 2, 4, 10
"""Rae et al. 2021 (Gopher), appendix A.1: of runs of 2 to 4 words the most frequent, of 5 to 10 all that repeat."""
NGRAM_FEATURES = LONGEST_NGRAM - SHORTEST_NGRAM + 1


class RepeatedWords(NamedTuple):
    """Of words and runs of words; `repeated_words` finds all n-gram features in one pass over n, in this order."""

    top_word_share: float
    top_2gram_share: float
    top_3gram_share: float
    top_4gram_share: float
    duplicate_5gram_share: float
    duplicate_6gram_share: float
    duplicate_7gram_share: float
    duplicate_8gram_share: float
    duplicate_9gram_share: float
    duplicate_10gram_share: float


def repeated_words_plain(text: str) -> RepeatedWords:
    """The features of a text's repeated words and runs of words."""
    words = text.split()
    lettered = Counter(word for word in words if has_class(word, LETTER))
    tops = range(SHORTEST_NGRAM, LONGEST_TOP_NGRAM + 1)
    others = range(LONGEST_TOP_NGRAM + 1, LONGEST_NGRAM + 1)
    return RepeatedWords(
        share(max(lettered.values(), default=0), len(words)),
        *(share(_top_ngram_plain(words, n), len(text)) for n in tops),
        *(share(_repeated_ngrams_plain(words, n), len(text)) for n in others),
    )


def _top_ngram_plain(words: Sequence[str], n: int) -> int:
    """Characters that the most frequent repeated n-gram covers; of equally frequent ones, the first."""
    ngrams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    ngram, count = max(ngrams.items(), key=lambda item: item[1], default=("", 0))
    return len(ngram) * count if count > 1 else 0


def _repeated_ngrams_plain(words: Sequence[str], n: int) -> int:
    """Characters of words in n-grams seen before, each word counted once."""
    seen: set[tuple[str, ...]] = set()
    characters = i = 0
    while i < len(words) - n + 1:
        ngram = tuple(words[i : i + n])
        if ngram in seen:
            characters += sum(map(len, ngram))
            i += n
        else:
            seen.add(ngram)
            i += 1
    return characters


@bare_helper
def _ngram_hash(hashes: U64, start: int, n: int) -> np.uint64:
    value = np.uint64(n)
    for k in range(n):
        value = value * WORD_BASE + hashes[start + k]
    return value


@bare_helper
def _count_ngrams(hashes: U64, n: int, places: I32, count: int, slots: I32, keys: U64, used: I32) -> None:
    """Count the n-grams at `places`, each in a slot of the table: used[slots[i]] is the count of the i-th."""
    size = table_size(count)
    used[:size] = 0
    for i in range(count):
        key = _ngram_hash(hashes, int(places[i]), n)
        slot = slot_of(keys, used, size, key)
        keys[slot] = key
        used[slot] += 1
        slots[i] = slot


@bare_helper
def _top_ngram(lengths: I32, n: int, places: I32, count: int, slots: I32, used: I32) -> int:
    """Characters that the most frequent repeated n-gram covers; of equally frequent ones, the first."""
    best = 1
    first = 0
    for i in range(count):
        if used[slots[i]] > best:  # strictly: of equal counts the first, as Counter has it
            best = int(used[slots[i]])
            first = int(places[i])
    if best < 2:
        return 0
    characters = n - 1  # the blanks between
    for k in range(n):
        characters += int(lengths[first + k])
    return characters * best


@bare_helper
def _repeated_ngrams(lengths: I32, n: int, places: I32, count: int, slots: I32, used: I32) -> int:
    """Characters of words in n-grams seen before, each word counted once. Spoils `used`: seen slots become negative."""
    characters = following = 0
    for i in range(count):
        if places[i] < following:
            continue
        if used[slots[i]] < 0:
            for k in range(n):
                characters += int(lengths[places[i] + k])
            following = int(places[i]) + n
        used[slots[i]] = -abs(used[slots[i]])  # the sign says "seen", the count stays
    return characters


@bare_helper
def _top_word(hashes: U64, kinds: NDArray[np.uint8], count: int, keys: U64, used: I32) -> int:
    size = table_size(count)
    used[:size] = 0
    best = 0
    for i in range(count):
        if kinds[i] & 1:
            place = slot_of(keys, used, size, hashes[i])
            keys[place] = hashes[i]
            used[place] += 1
            best = max(best, int(used[place]))
    return best


@bare_helper
def repeated_words(
    hashes: U64,
    lengths: I32,
    kinds: NDArray[np.uint8],
    words: int,
    size: int,
    keys: U64,
    used: I32,
    places: I32,
    slots: I32,
    shares: NDArray[np.float64],
) -> RepeatedWords:
    """Of the `words` words of a text of `size` characters, as `split_words` hashed them.

    An n-gram is only repeated where its first n - 1 words are, so few places are counted for the longer ones.
    """
    top_word_share = share(_top_word(hashes, kinds, words, keys, used), words)
    count = words
    for i in range(words):
        places[i] = i
    for n in range(SHORTEST_NGRAM, LONGEST_NGRAM + 1):
        fitting = 0
        while fitting < count and places[fitting] + n <= words:  # places ascend
            fitting += 1
        count = fitting
        _count_ngrams(hashes, n, places, count, slots, keys, used)
        if n <= LONGEST_TOP_NGRAM:
            covered = _top_ngram(lengths, n, places, count, slots, used)
        else:
            covered = _repeated_ngrams(lengths, n, places, count, slots, used)
        shares[n - SHORTEST_NGRAM] = share(covered, size)
        left = 0
        for i in range(count):
            if abs(used[slots[i]]) > 1:
                places[left] = places[i]
                left += 1
        count = left
    return RepeatedWords(
        top_word_share,
        shares[0], shares[1], shares[2], shares[3], shares[4], shares[5], shares[6], shares[7], shares[8],
    )  # fmt: skip
