"""Phrases that tell what a line is: navigation, cookie banners, legal footers, scripts, placeholder text."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.corpus.features.characters import I32
from model.kernels.jit import bare_helper

POLICY, JAVASCRIPT, LOREM, BOILERPLATE = 1, 2, 4, 8
PHRASES: tuple[tuple[str, int], ...] = (
    ("terms of use", POLICY | BOILERPLATE),
    ("privacy policy", POLICY | BOILERPLATE),
    ("cookie policy", POLICY | BOILERPLATE),
    ("uses cookies", POLICY | BOILERPLATE),
    ("use of cookies", POLICY | BOILERPLATE),
    ("use cookies", POLICY | BOILERPLATE),
    ("javascript", JAVASCRIPT),
    ("lorem ipsum", LOREM | BOILERPLATE),
    ("all rights reserved", BOILERPLATE),
    ("terms of service", BOILERPLATE),
    ("terms and conditions", BOILERPLATE),
    ("subscribe to", BOILERPLATE),
    ("sign up for", BOILERPLATE),
    ("click here", BOILERPLATE),
    ("read more", BOILERPLATE),
    ("share this", BOILERPLATE),
    ("share on facebook", BOILERPLATE),
    ("follow us on", BOILERPLATE),
    ("leave a comment", BOILERPLATE),
    ("leave a reply", BOILERPLATE),
    ("skip to content", BOILERPLATE),
    ("skip to main content", BOILERPLATE),
    ("back to top", BOILERPLATE),
    ("powered by", BOILERPLATE),
    ("enable javascript", BOILERPLATE),
    ("accept all", BOILERPLATE),
    ("add to cart", BOILERPLATE),
    ("previous post", BOILERPLATE),
    ("next post", BOILERPLATE),
    ("licensed under the", BOILERPLATE),
)
"""Lower-case ASCII phrases and what a line that holds one counts as. The first eight are C4's (Raffel et al. 2020)."""
TRIGGER_BITS = 12  # 4 KB of flags: they stay in the first-level cache


def marks_of(line: str) -> int:
    """Flags of the phrases in a line; lower-cased as ASCII only, so that the Kelvin sign is no `k`."""
    lowered = line.encode().lower().decode()
    return sum({mark for phrase, flags in PHRASES if phrase in lowered for mark in _bits(flags)})


def _bits(flags: int) -> list[int]:
    return [1 << bit for bit in range(4) if flags >> bit & 1]


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
    # Fibonacci hashing (2^32 / golden ratio): the top bits are the best mixed.
    return int(((int(last_four) * 0x9E3779B1) & 0xFFFFFFFF) >> 20)


@bare_helper
def line_marks(
    line: I32, phrases: I32, phrase_ends: NDArray[np.int64], phrase_marks: I32, trigger: NDArray[np.bool_]
) -> int:
    marks = 0
    last_four = np.uint32(0)
    for i in range(len(line)):
        point = line[i]
        # 127 stands for all beyond ASCII: a byte is kept of each, and no phrase has that one.
        low = point + 32 if 65 <= point <= 90 else min(point, 127)
        last_four = np.uint32((last_four << np.uint32(8)) | np.uint32(low))
        if trigger[trigger_slot(last_four)]:
            # It took the first four characters to notice a phrase.
            marks |= _phrases_at(line, i - 3, phrases, phrase_ends, phrase_marks)
    return marks


@bare_helper
def _phrases_at(line: I32, start: int, phrases: I32, phrase_ends: NDArray[np.int64], phrase_marks: I32) -> int:
    marks = 0
    begin = 0
    for k in range(len(phrase_ends)):
        length = phrase_ends[k] - begin
        same = 0
        if start >= 0 and start + length <= len(line):
            while same < length:
                point = line[start + same]
                if (point + 32 if 65 <= point <= 90 else point) != phrases[begin + same]:
                    break
                same += 1
            if same == length:
                marks |= int(phrase_marks[k])
        begin = phrase_ends[k]
    return marks
