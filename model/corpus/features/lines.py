"""Compiled features of lines: how they begin and end, code, boilerplate, and what C4 would keep of them."""

import numpy as np
from numpy.typing import NDArray

from model.corpus.features.names import (
    BOILERPLATE,
    BOILERPLATE_SHARE,
    BULLET_LINE_SHARE,
    C4_LINE_SHARE,
    C4_SENTENCES,
    CODE_SHARE,
    CURLY_BRACKETS,
    ELLIPSIS_LINE_SHARE,
    JAVASCRIPT,
    LINE_PUNCTUATION_SHARE,
    LOREM,
    LOREM_IPSUM,
    POLICY,
    SHORT_LINE_SHARE,
)
from model.corpus.features.tables import (
    BRACE,
    BULLET,
    C4_END,
    CLASS,
    CLOSING,
    CODE,
    CODE_END,
    CODE_POINT_BASE,
    DOT,
    ELLIPSIS,
    F32,
    I32,
    NEWLINE,
    SENTENCE_END,
    TERMINAL,
    Marks,
    share,
    trigger_slot,
)
from model.corpus.words import U64
from model.kernels.jit import bare_helper

# What is added up over the filled lines of a document.
(
    _FILLED, _BULLETS, _ELLIPSES, _TERMINALS, _SHORT, _CHARACTERS, _VISIBLE, _LOREM, _BOILERPLATE, _FENCED, _IN_CODE,
    _CURLY, _SENTENCES, _C4_CHARACTERS,
) = range(14)  # fmt: skip
LINE_TOTALS = 14
_EDIT, _CITATION_NEEDED = tuple(map(ord, "edit")), tuple(map(ord, "citation needed"))


@bare_helper
def _line_marks(
    line: I32, phrases: I32, phrase_ends: NDArray[np.int64], phrase_marks: I32, trigger: NDArray[np.bool_]
) -> int:
    marks = 0
    last_four = np.uint32(0)
    for i in range(len(line)):
        point = line[i]
        low = point + 32 if 65 <= point <= 90 else min(point, 127)
        last_four = np.uint32((last_four << np.uint32(8)) | np.uint32(low))
        if trigger[trigger_slot(last_four)]:
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


@bare_helper
def trim_end(text: I32, marks: Marks, start: int, end: int) -> int:
    while end > start and marks[end - 1] & CLASS == 0:
        end -= 1
    return end


@bare_helper
def _ends_with_dots(text: I32, start: int, end: int) -> bool:
    return end - start >= 3 and text[end - 1] == DOT and text[end - 2] == DOT and text[end - 3] == DOT


@bare_helper
def _strip_citations(text: I32, marks: Marks, start: int, end: int) -> int:
    """The end of text[start:end] without trailing `[12]`, `[edit]`, `[citation needed]`."""
    while end - start >= 2 and text[end - 1] == 93:
        opening = end - 2
        while opening > start and text[opening] != 91 and end - opening < 40 + len(text):
            if text[opening] == 93:
                break
            opening -= 1
        if text[opening] != 91 or not _is_citation(text, opening + 1, end - 1):
            return end
        end = trim_end(text, marks, start, opening)
    return end


@bare_helper
def _is_citation(text: I32, start: int, end: int) -> bool:
    digits = True
    for i in range(start, end):
        digits = digits and 48 <= text[i] <= 57
    return digits or _equals(text, start, end, _EDIT) or _equals(text, start, end, _CITATION_NEEDED)


@bare_helper
def _equals(text: I32, start: int, end: int, wanted: tuple[int, ...]) -> bool:
    if end - start != len(wanted):
        return False
    for i in range(end - start):  # noqa: SIM110 (numba has no generator expressions)
        if text[start + i] != wanted[i]:
            return False
    return True


@bare_helper
def _c4_sentences(text: I32, marks: Marks, start: int, end: int) -> int:
    """Sentences of a line, one at least; -1 for a line that C4 drops before it looks for its phrases."""
    if end == start or not marks[end - 1] & C4_END or _ends_with_dots(text, start, end):
        return -1
    words = length = longest = sentences = before = 0
    for i in range(start, end):  # without a branch on where words end, which no predictor can foresee
        inside = int(marks[i] & CLASS != 0)
        words += inside & (1 - before)
        length = (length + 1) * inside
        longest = max(longest, length)
        before = inside
    if words < 3 or longest > 1000:
        return -1
    i = start
    while i < end:
        if not marks[i] & SENTENCE_END:
            i += 1
            continue
        while i < end and marks[i] & SENTENCE_END:
            i += 1
        while i < end and marks[i] & CLOSING:
            i += 1
        sentences += int(i == end or marks[i] & CLASS == 0)
    return max(sentences, 1)


@bare_helper
def _is_code(text: I32, marks: Marks, start: int, end: int, visible: int) -> bool:
    if end - start >= 3 and text[start] == 62 and text[start + 1] == 62 and text[start + 2] == 62:
        return True
    if end - start >= 4 and _ends_with_dots(text, start, start + 3) and text[start + 3] == 32:
        return True
    if end - start >= 2 and text[start] == 36 and text[start + 1] == 32:
        return True
    if marks[end - 1] & CODE_END:
        return True
    code = 0
    for i in range(start, end):
        code += int(marks[i] & CODE != 0)
    return code / visible >= 0.15


@bare_helper
def _is_fence(text: I32, start: int, end: int) -> bool:
    return end - start >= 3 and text[start] == 96 and text[start + 1] == 96 and text[start + 2] == 96


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
    totals[_ELLIPSES] += int(text[end - 1] == ELLIPSIS or _ends_with_dots(text, start, end))
    totals[_TERMINALS] += int(marks[end - 1] & TERMINAL != 0)
    totals[_SHORT] += int(stop - begin <= 30)
    totals[_CHARACTERS] += end - start
    totals[_VISIBLE] += visible
    said = _line_marks(text[begin:stop], phrases, phrase_ends, phrase_marks, trigger)
    totals[_LOREM] += int(said & LOREM != 0)
    totals[_BOILERPLATE] += end - start if said & BOILERPLATE else 0
    fence = _is_fence(text, start, end)
    if totals[_FENCED] or fence or _is_code(text, marks, start, end, visible):
        totals[_IN_CODE] += visible
    totals[_FENCED] ^= int(fence)
    kept_end = _strip_citations(text, marks, start, end)
    sentences = _c4_sentences(text, marks, start, kept_end)
    if sentences < 0 or said & JAVASCRIPT:
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
    out: F32,
) -> int:
    """Line features but repetition; leaves hash, length and filledness of non-empty lines, returns their number."""
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
            filled[count] = np.uint8(visible > 0)
            count += 1
        if visible:
            _judge_line(text, begin, stop, visible, marks, phrases, phrase_ends, phrase_marks, trigger, totals)
        begin = stop + 1
    out[BULLET_LINE_SHARE] = share(totals[_BULLETS], lines)
    out[ELLIPSIS_LINE_SHARE] = share(totals[_ELLIPSES], lines)
    out[C4_SENTENCES] = totals[_SENTENCES]
    out[C4_LINE_SHARE] = share(totals[_C4_CHARACTERS], totals[_CHARACTERS])
    out[CURLY_BRACKETS] = totals[_CURLY]
    out[LOREM_IPSUM] = totals[_LOREM]
    out[LINE_PUNCTUATION_SHARE] = share(totals[_TERMINALS], totals[_FILLED])
    out[SHORT_LINE_SHARE] = share(totals[_SHORT], totals[_FILLED])
    out[CODE_SHARE] = share(totals[_IN_CODE], totals[_VISIBLE])
    out[BOILERPLATE_SHARE] = share(totals[_BOILERPLATE], totals[_CHARACTERS])
    return count
