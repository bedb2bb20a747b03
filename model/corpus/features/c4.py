"""Which lines C4 would keep of a page (Raffel et al. 2020), and the sentences in them."""

import re

from model.corpus.features.characters import (
    C4_END,
    C4_LINE_ENDS,
    CLASS,
    CLOSING,
    CLOSING_MARKS,
    DOT,
    I32,
    SENTENCE_END,
    SENTENCE_ENDS,
    Marks,
    trim_end,
)
from model.kernels.jit import bare_helper

# Of a line that C4 keeps (docs/filters.md).
FEWEST_WORDS = 3
LONGEST_WORD = 1000
_CITATION = re.compile(r"\[[0-9]*\]$|\[edit\]$|\[citation needed\]$")
_SENTENCE_END = re.compile(rf"[{SENTENCE_ENDS}]+[{re.escape(CLOSING_MARKS)}]*(?=\s|$)")
_EDIT, _CITATION_NEEDED = tuple(map(ord, "edit")), tuple(map(ord, "citation needed"))


def strip_citations_plain(line: str) -> str:
    """The line without blanks around it and without `[12]`, `[edit]`, `[citation needed]` at its end."""
    line = line.strip()
    while found := _CITATION.search(line):  # several may follow one another
        line = line[: found.start()].rstrip()
    return line


def is_judged_plain(line: str) -> bool:
    """Whether C4 goes on to look for its phrases in this line of a page, or drops it at once."""
    words = line.split()
    return (
        line.endswith(tuple(C4_LINE_ENDS))
        and not line.endswith("...")
        and len(words) >= FEWEST_WORDS
        and max(map(len, words)) <= LONGEST_WORD
    )


def sentences_plain(line: str) -> int:
    """Sentences of a line that C4 keeps, one at least."""
    return max(len(_SENTENCE_END.findall(line)), 1)


@bare_helper
def ends_with_dots(text: I32, start: int, end: int) -> bool:
    return end - start >= 3 and text[end - 1] == DOT and text[end - 2] == DOT and text[end - 3] == DOT


@bare_helper
def strip_citations(text: I32, marks: Marks, start: int, end: int) -> int:
    """The end of text[start:end] without trailing `[12]`, `[edit]`, `[citation needed]`."""
    while end - start >= 2 and text[end - 1] == 93:  # 93 is ], 91 is [
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
def sentences_of(text: I32, marks: Marks, start: int, end: int) -> int:
    """Sentences of a line, one at least; -1 for a line that C4 drops before it looks for its phrases."""
    if end == start or not marks[end - 1] & C4_END or ends_with_dots(text, start, end):
        return -1
    words = length = longest = sentences = before = 0
    for i in range(start, end):  # without a branch on where words end, which no predictor can foresee
        inside = int(marks[i] & CLASS != 0)
        words += inside & (1 - before)
        length = (length + 1) * inside
        longest = max(longest, length)
        before = inside
    if words < FEWEST_WORDS or longest > LONGEST_WORD:
        return -1
    i = start
    while i < end:
        if not marks[i] & SENTENCE_END:
            i += 1
            continue
        while i < end and marks[i] & SENTENCE_END:
            i += 1
        while i < end and marks[i] & CLOSING:  # `."` ends a sentence as `.` does
            i += 1
        sentences += int(i == end or marks[i] & CLASS == 0)
    return max(sentences, 1)
