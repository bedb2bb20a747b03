"""Tables that the feature kernels read: sets of characters as bits, stop words and phrases as hashes."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.corpus.features import names as names
from model.corpus.features.names import PHRASES
from model.corpus.words import U64
from model.kernels.jit import bare_helper

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
Traits = NDArray[np.uint16]
"""A set of bits for each code point there is."""
Marks = NDArray[np.uint16]
"""The traits of each code point of a text."""

# What a code point belongs to: the class in two bits, then one bit a set.
CLASS = 3
TRIGGER_BITS = 12
C4_END, SENTENCE_END, CLOSING, TERMINAL, CODE, CODE_END, BULLET, TAG_START, IN_ENTITY = (
    1 << bit for bit in range(2, 11)
)
NEWLINE, DOT, HASH, BRACE, ELLIPSIS = ord("\n"), ord("."), ord("#"), ord("{"), ord("…")
CODE_POINT_BASE = np.uint64(0x3243F6A8885A308D)
WORD_BASE = np.uint64(0x2B7E151628AED2A7)
"""Odd multipliers of polynomial hashes modulo 2^64."""


@cache
def traits_of_code_points() -> NDArray[np.uint16]:
    """Class and memberships of each code point, one bit a set. (0x110000,)"""
    traits: Traits = names.character_classes().astype(np.uint16)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    members = {
        C4_END: names.C4_LINE_ENDS,
        SENTENCE_END: names.SENTENCE_ENDS,
        CLOSING: names.CLOSING,
        TERMINAL: names.TERMINAL_PUNCTUATION,
        CODE: names.CODE_CHARACTERS,
        CODE_END: names.CODE_LINE_ENDS,
        BULLET: names.BULLETS,
        TAG_START: letters + "/!?",
        IN_ENTITY: letters + "0123456789#",
    }
    for bit, characters in members.items():
        traits[[ord(character) for character in characters]] |= np.uint16(bit)
    return traits


@cache
def stop_hashes() -> U64:
    hashes = []
    for word in names.STOP_WORDS:
        value = np.uint64(0)
        with np.errstate(over="ignore"):
            for character in word:
                value = value * CODE_POINT_BASE + np.uint64(ord(character))
        hashes.append(value)
    return np.array(hashes, np.uint64)


@cache
def phrase_tables() -> tuple[I32, NDArray[np.int64], I32, NDArray[np.bool_]]:
    """All phrases end to end, their ends, their marks, and which 4-character beginnings exist (by a 12-bit hash)."""
    points = np.array([ord(character) for phrase, _ in PHRASES for character in phrase], np.int32)
    ends = np.cumsum([len(phrase) for phrase, _ in PHRASES]).astype(np.int64)
    trigger = np.zeros(1 << TRIGGER_BITS, np.bool_)
    for phrase, _ in PHRASES:
        trigger[trigger_slot(np.uint32(int.from_bytes(phrase[:4].encode(), "big")))] = True
    return points, ends, np.array([mark for _, mark in PHRASES], np.int32), trigger


@bare_helper
def trigger_slot(last_four: np.uint32) -> int:
    return int(((int(last_four) * 0x9E3779B1) & 0xFFFFFFFF) >> 20)


@bare_helper
def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
