"""Features of a document's lines: how they begin and end, code, boilerplate, and what C4 would keep of them.

First the definition in plain Python, the oracle of the kernel and its stand-in; then the same, compiled.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.corpus.features import c4
from model.corpus.features.characters import (
    BRACE,
    BULLET,
    BULLETS,
    CLASS,
    CODE,
    CODE_CHARACTERS,
    CODE_END,
    CODE_LINE_ENDS,
    CODE_POINT_BASE,
    ELLIPSIS,
    I32,
    NEWLINE,
    SPACE,
    TERMINAL,
    TERMINAL_PUNCTUATION,
    Marks,
    classes_of,
    share,
    trim_end,
)
from model.corpus.features.phrases import BOILERPLATE, JAVASCRIPT, LOREM, POLICY, line_marks, marks_of
from model.corpus.words import U64
from model.kernels.jit import bare_helper

SHORT_LINE_CHARACTERS = 30  # FineWeb's
CODE_LINE_SHARE = 0.15
"""A line counts as code from this share of code characters among its non-space characters."""


class LineFeatures(NamedTuple):
    """What is measured of lines; docs/filters.md says what each means, with its source."""

    bullet_line_share: float
    ellipsis_line_share: float
    c4_sentences: float
    c4_line_share: float
    curly_brackets: float
    lorem_ipsum: float
    line_punctuation_share: float
    short_line_share: float
    code_share: float
    boilerplate_share: float


def lines_plain(text: str) -> LineFeatures:
    """The features of a text's lines."""
    lines = text.split("\n")
    if not lines[-1]:  # a newline ends a line and begins none
        lines.pop()
    filled = [line for line in lines if line.strip()]
    judged = [line for line in map(c4.strip_citations_plain, filled) if c4.is_judged_plain(line)]
    kept = [line for line in judged if not marks_of(line) & (POLICY | JAVASCRIPT)]
    size = sum(len(line.strip()) for line in filled)
    terminals = tuple(TERMINAL_PUNCTUATION)
    return LineFeatures(
        bullet_line_share=share(sum(line.lstrip().startswith(tuple(BULLETS)) for line in lines), len(lines)),
        ellipsis_line_share=share(sum(line.rstrip().endswith(("...", chr(ELLIPSIS))) for line in lines), len(lines)),
        c4_sentences=sum(map(c4.sentences_plain, kept)),
        c4_line_share=share(sum(map(len, kept)), size),
        curly_brackets=sum(line.count("{") for line in judged if not marks_of(line) & JAVASCRIPT),
        lorem_ipsum=sum(bool(marks_of(line) & LOREM) for line in filled),
        line_punctuation_share=share(sum(line.rstrip().endswith(terminals) for line in filled), len(filled)),
        short_line_share=share(sum(len(line) <= SHORT_LINE_CHARACTERS for line in filled), len(filled)),
        code_share=_code_share(filled),
        boilerplate_share=share(sum(len(line.strip()) for line in filled if marks_of(line) & BOILERPLATE), size),
    )


def _code_share(filled: Sequence[str]) -> float:
    code = visible = 0
    fenced = False
    for line in filled:
        stripped = line.strip()
        size = sum(found != SPACE for found in classes_of(stripped))
        visible += size
        fence = stripped.startswith("```")
        if fenced or fence or _is_code_plain(stripped, size):
            code += size
        fenced ^= fence  # a fence opens or closes, and is code itself
    return share(code, visible)


def _is_code_plain(stripped: str, size: int) -> bool:
    return (
        stripped.startswith((">>>", "... ", "$ "))
        or stripped.endswith(tuple(CODE_LINE_ENDS))
        or sum(character in CODE_CHARACTERS for character in stripped) / size >= CODE_LINE_SHARE
    )


# What is added up over the filled lines of a document.
(
    _FILLED, _BULLETS, _ELLIPSES, _TERMINALS, _SHORT, _CHARACTERS, _VISIBLE, _LOREM, _BOILERPLATE, _FENCED, _IN_CODE,
    _CURLY, _SENTENCES, _C4_CHARACTERS,
) = range(14)  # fmt: skip
LINE_TOTALS = 14


@bare_helper
def _is_code(text: I32, marks: Marks, start: int, end: int, visible: int) -> bool:
    if end - start >= 3 and text[start] == 62 and text[start + 1] == 62 and text[start + 2] == 62:  # >>>
        return True
    if end - start >= 4 and c4.ends_with_dots(text, start, start + 3) and text[start + 3] == 32:  # "... "
        return True
    if end - start >= 2 and text[start] == 36 and text[start + 1] == 32:  # "$ "
        return True
    if marks[end - 1] & CODE_END:
        return True
    code = 0
    for i in range(start, end):
        code += int(marks[i] & CODE != 0)
    return code / visible >= CODE_LINE_SHARE


@bare_helper
def _is_fence(text: I32, start: int, end: int) -> bool:
    return end - start >= 3 and text[start] == 96 and text[start + 1] == 96 and text[start + 2] == 96  # ```


@bare_helper
def _judge_line(
    text: I32,
    begin: int,
    stop: int,
    visible: int,
    marks: Marks,
    phrases: I32,
    phrase_ends: NDArray[np.int64],
    phrase_marks: I32,
    trigger: NDArray[np.bool_],
    totals: NDArray[np.int64],
) -> None:
    """Add a filled line, of which `visible` characters are no space, to the totals."""
    start = begin
    while marks[start] & CLASS == 0:
        start += 1
    end = trim_end(text, marks, start, stop)
    totals[_FILLED] += 1
    totals[_BULLETS] += int(marks[start] & BULLET != 0)
    totals[_ELLIPSES] += int(text[end - 1] == ELLIPSIS or c4.ends_with_dots(text, start, end))
    totals[_TERMINALS] += int(marks[end - 1] & TERMINAL != 0)
    totals[_SHORT] += int(stop - begin <= SHORT_LINE_CHARACTERS)  # with its blanks, as FineWeb counts
    totals[_CHARACTERS] += end - start
    totals[_VISIBLE] += visible
    said = line_marks(text[begin:stop], phrases, phrase_ends, phrase_marks, trigger)
    totals[_LOREM] += int(said & LOREM != 0)
    totals[_BOILERPLATE] += end - start if said & BOILERPLATE else 0
    fence = _is_fence(text, start, end)
    if totals[_FENCED] or fence or _is_code(text, marks, start, end, visible):
        totals[_IN_CODE] += visible
    totals[_FENCED] ^= int(fence)
    kept_end = c4.strip_citations(text, marks, start, end)
    sentences = c4.sentences_of(text, marks, start, kept_end)
    if sentences < 0 or said & JAVASCRIPT:  # in C4's order: braces are counted in what it still looks at here
        return
    for i in range(start, kept_end):
        totals[_CURLY] += int(text[i] == BRACE)
    if not said & POLICY:
        totals[_SENTENCES] += sentences
        totals[_C4_CHARACTERS] += kept_end - start


@bare_helper
def measure_lines(
    text: I32,
    marks: Marks,
    phrases: I32,
    phrase_ends: NDArray[np.int64],
    phrase_marks: I32,
    trigger: NDArray[np.bool_],
    hashes: U64,
    lengths: I32,
    filled: NDArray[np.uint8],
    totals: NDArray[np.int64],
) -> tuple[int, LineFeatures]:
    """(non-empty lines, features); of each non-empty line hash, length and filledness stay for `repeated_lines`."""
    totals[:] = 0
    count = lines = begin = 0
    while begin < len(text):
        stop = begin
        value = np.uint64(0)
        visible = 0
        while stop < len(text) and text[stop] != NEWLINE:
            value = value * CODE_POINT_BASE + np.uint64(text[stop])
            visible += int(marks[stop] & CLASS != 0)
            stop += 1
        lines += 1
        if stop > begin:
            hashes[count] = value
            lengths[count] = stop - begin
            filled[count] = np.uint8(visible > 0)  # FineWeb's duplicates count only these
            count += 1
        if visible:
            _judge_line(text, begin, stop, visible, marks, phrases, phrase_ends, phrase_marks, trigger, totals)
        begin = stop + 1
    return count, LineFeatures(
        bullet_line_share=share(totals[_BULLETS], lines),
        ellipsis_line_share=share(totals[_ELLIPSES], lines),
        c4_sentences=float(totals[_SENTENCES]),
        c4_line_share=share(totals[_C4_CHARACTERS], totals[_CHARACTERS]),
        curly_brackets=float(totals[_CURLY]),
        lorem_ipsum=float(totals[_LOREM]),
        line_punctuation_share=share(totals[_TERMINALS], totals[_FILLED]),
        short_line_share=share(totals[_SHORT], totals[_FILLED]),
        code_share=share(totals[_IN_CODE], totals[_VISIBLE]),
        boilerplate_share=share(totals[_BOILERPLATE], totals[_CHARACTERS]),
    )
