"""The features of `features_plain`, bit for bit, compiled: one sweep over the Arrow buffers, each document in cache.

A document is decoded to code points once; its words, lines and paragraphs become 64-bit hashes, so that repetition is
counted with small hash tables and no string is ever made.
"""

from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model import feature_names as names
from model.feature_names import BOILERPLATE, FEATURES, JAVASCRIPT, LOREM, PHRASES, POLICY
from model.jit import helper, kernel
from model.words import U64, buffers_of, mix, utf8_code_point, utf8_width

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]

_CLASS, _C4_END, _SENTENCE_END, _CLOSING, _TERMINAL, _CODE, _CODE_END, _BULLET, _TAG_START, _IN_ENTITY = (
    (3, *(1 << bit for bit in range(2, 11)))
)  # fmt: skip
_LETTER_CLASS, _DIGIT_CLASS = names.LETTER, names.DIGIT
_P = np.uint64(0x3243F6A8885A308D)
_Q = np.uint64(0x2B7E151628AED2A7)
_TRIGGER_BITS = 12
_HAS_LETTER, _IS_REAL = 1, 2

(
    CHARACTERS, WORDS, MEAN_WORD_LENGTH, LONGEST_WORD, HASH_RATIO, ELLIPSIS_RATIO, BULLET_LINE_SHARE,
    ELLIPSIS_LINE_SHARE, ALPHABETIC_WORD_SHARE, STOP_WORDS, DUPLICATE_LINE_SHARE, DUPLICATE_LINE_CHAR_SHARE,
    DUPLICATE_PARAGRAPH_SHARE, DUPLICATE_PARAGRAPH_CHAR_SHARE, TOP_2GRAM_SHARE, TOP_3GRAM_SHARE, TOP_4GRAM_SHARE,
    DUPLICATE_5GRAM_SHARE, DUPLICATE_6GRAM_SHARE, DUPLICATE_7GRAM_SHARE, DUPLICATE_8GRAM_SHARE, DUPLICATE_9GRAM_SHARE,
    DUPLICATE_10GRAM_SHARE, C4_SENTENCES, C4_LINE_SHARE, CURLY_BRACKETS, LOREM_IPSUM, LINE_PUNCTUATION_SHARE,
    SHORT_LINE_SHARE, FINEWEB_DUPLICATE_SHARE, NEWLINES_PER_WORD, CODE_SHARE, MARKUP_SHARE, BOILERPLATE_SHARE,
    TOP_WORD_SHARE, LONGEST_WORD_RUN, SYMBOL_SHARE, DIGIT_SHARE,
) = range(len(FEATURES))  # fmt: skip


def measure_compiled(texts: pa.LargeStringArray) -> F32:
    """Features of each text. (documents, len(FEATURES))"""
    buffers = buffers_of(texts)
    out = np.zeros((len(texts), len(FEATURES)), np.float32)
    phrases, phrase_ends, phrase_marks, trigger = _phrase_tables()
    _measure_kernel(
        buffers.data, buffers.offsets, _traits(), _stop_hashes(), phrases, phrase_ends, phrase_marks, trigger, out
    )
    return out


@cache
def _traits() -> NDArray[np.uint16]:
    """Class and memberships of each code point, one bit a set. (0x110000,)"""
    traits = names.character_classes().astype(np.uint16)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    members = {
        _C4_END: names.C4_LINE_ENDS,
        _SENTENCE_END: names.SENTENCE_ENDS,
        _CLOSING: names.CLOSING,
        _TERMINAL: names.TERMINAL_PUNCTUATION,
        _CODE: names.CODE_CHARACTERS,
        _CODE_END: names.CODE_LINE_ENDS,
        _BULLET: names.BULLETS,
        _TAG_START: letters + "/!?",
        _IN_ENTITY: letters + "0123456789#",
    }
    for bit, characters in members.items():
        traits[[ord(character) for character in characters]] |= np.uint16(bit)
    return traits


@cache
def _stop_hashes() -> U64:
    hashes = []
    for word in names.STOP_WORDS:
        value = np.uint64(0)
        with np.errstate(over="ignore"):
            for character in word:
                value = value * _P + np.uint64(ord(character))
        hashes.append(value)
    return np.array(hashes, np.uint64)


@cache
def _phrase_tables() -> tuple[I32, NDArray[np.int64], I32, NDArray[np.bool_]]:
    """All phrases end to end, their ends, their marks, and which 4-character beginnings exist (by a 12-bit hash)."""
    points = np.array([ord(character) for phrase, _ in PHRASES for character in phrase], np.int32)
    ends = np.cumsum([len(phrase) for phrase, _ in PHRASES]).astype(np.int64)
    trigger = np.zeros(1 << _TRIGGER_BITS, np.bool_)
    for phrase, _ in PHRASES:
        trigger[_trigger_slot(np.uint32(int.from_bytes(phrase[:4].encode(), "big")))] = True
    return points, ends, np.array([mark for _, mark in PHRASES], np.int32), trigger


@helper
def _trigger_slot(last_four: np.uint32) -> int:
    return int(((int(last_four) * 0x9E3779B1) & 0xFFFFFFFF) >> 20)


@helper
def _decode(data: NDArray[np.uint8], out: I32) -> int:
    count = 0
    for i in range(len(data)):
        byte = data[i]
        if byte < 128:
            out[count] = byte
            count += 1
        elif byte >= 0xC0:
            out[count] = utf8_code_point(data, i, utf8_width(byte))
            count += 1
    return count


@helper
def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@helper
def _split_words(text: I32, traits: NDArray[np.uint16], hashes: U64, lengths: I32, kinds: NDArray[np.uint8]) -> int:
    """Whitespace-separated words: polynomial hash, characters, and whether it has a letter, a letter or digit."""
    count = length = before = 0
    value = np.uint64(0)
    kind = np.uint8(0)
    for i in range(len(text)):  # as model.words.hash_words: no branch that depends on where words end
        found = traits[text[i]] & 3
        inside = int(found != 0)
        count += before & (1 - inside)
        value = (value * _P + np.uint64(text[i])) if inside else np.uint64(0)
        length = (length + 1) * inside
        kind = np.uint8(kind | int(found == 1) * 3 | int(found == 2) * 2) if inside else np.uint8(0)
        hashes[count] = value
        lengths[count] = length
        kinds[count] = kind
        before = inside
    return count + before


@helper
def _count_characters(text: I32, traits: NDArray[np.uint16], words: int, out: F32) -> None:
    classes = np.zeros(4, np.int64)
    hashes = ellipses = newlines = 0
    dots = 0
    for i in range(len(text)):
        point = text[i]
        classes[traits[point] & 3] += 1
        hashes += int(point == 35)
        newlines += int(point == 10)
        ellipses += int(point == 0x2026)
        dots = dots + 1 if point == 46 else 0
        if dots == 3:
            ellipses += 1
            dots = 0
    visible = len(text) - classes[0]
    out[CHARACTERS] = len(text)
    out[HASH_RATIO] = _share(hashes, words)
    out[ELLIPSIS_RATIO] = _share(ellipses, words)
    out[NEWLINES_PER_WORD] = _share(newlines, words)
    out[SYMBOL_SHARE] = _share(classes[3], visible)
    out[DIGIT_SHARE] = _share(classes[2], visible)


@helper
def _count_words(hashes: U64, lengths: I32, kinds: NDArray[np.uint8], count: int, stop_hashes: U64, out: F32) -> None:
    real = characters = lettered = longest = run = longest_run = stops = 0
    for i in range(count):
        longest = max(longest, int(lengths[i]))
        if kinds[i] & 2:
            real += 1
            characters += int(lengths[i])
        run = run + 1 if i and hashes[i] == hashes[i - 1] else 1
        if kinds[i] & 1:
            lettered += 1
            longest_run = max(longest_run, run)
        if lengths[i] <= 4:
            for k in range(len(stop_hashes)):
                if hashes[i] == stop_hashes[k]:
                    stops |= 1 << k
    distinct = 0
    for k in range(len(stop_hashes)):
        distinct += stops >> k & 1
    out[WORDS] = real
    out[MEAN_WORD_LENGTH] = _share(characters, real)
    out[LONGEST_WORD] = longest
    out[ALPHABETIC_WORD_SHARE] = _share(lettered, count)
    out[LONGEST_WORD_RUN] = longest_run
    out[STOP_WORDS] = distinct


@helper
def _markup_length(text: I32, traits: NDArray[np.uint16], i: int) -> int:
    """Characters of the tag, entity or link target that starts at text[i], or 0."""
    size = len(text)
    point = text[i]
    if point == 60 and i + 1 < size and traits[text[i + 1]] & _TAG_START:
        end = i + 2
        while end < size and end - i - 2 < 300 and text[end] != 60 and text[end] != 62:
            end += 1
        return end + 1 - i if end < size and text[end] == 62 else 0
    if point == 38:
        end = i + 1
        while end < size and end - i - 1 < 10 and traits[text[end]] & _IN_ENTITY:
            end += 1
        return end + 1 - i if end - i - 1 >= 2 and end < size and text[end] == 59 else 0
    if point == 93 and i + 1 < size and text[i + 1] == 40:
        end = i + 2
        while end < size and end - i - 2 < 500 and text[end] != 40 and text[end] != 41 and traits[text[end]] & 3:
            end += 1
        return end + 1 - i if end < size and text[end] == 41 else 0
    return 0


@helper
def _markup(text: I32, traits: NDArray[np.uint16]) -> int:
    total = 0
    i = 0
    while i < len(text):
        point = text[i]
        length = _markup_length(text, traits, i) if point == 60 or point == 38 or point == 93 else 0
        total += length
        i += max(length, 1)
    return total


@helper
def _line_marks(
    line: I32, phrases: I32, phrase_ends: NDArray[np.int64], phrase_marks: I32, trigger: NDArray[np.bool_]
) -> int:
    marks = 0
    last_four = np.uint32(0)
    for i in range(len(line)):
        point = line[i]
        low = point + 32 if 65 <= point <= 90 else min(point, 127)
        last_four = np.uint32((last_four << np.uint32(8)) | np.uint32(low))
        if trigger[_trigger_slot(last_four)]:
            marks |= _phrases_at(line, i - 3, phrases, phrase_ends, phrase_marks)
    return marks


@helper
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


@helper
def _trim_end(text: I32, traits: NDArray[np.uint16], start: int, end: int) -> int:
    while end > start and traits[text[end - 1]] & 3 == 0:
        end -= 1
    return end


@helper
def _ends_with_dots(text: I32, start: int, end: int) -> bool:
    return end - start >= 3 and text[end - 1] == 46 and text[end - 2] == 46 and text[end - 3] == 46


@helper
def _strip_citations(text: I32, traits: NDArray[np.uint16], start: int, end: int) -> int:
    """The end of text[start:end] without trailing `[12]`, `[edit]`, `[citation needed]`."""
    while end - start >= 2 and text[end - 1] == 93:
        opening = end - 2
        while opening > start and text[opening] != 91 and end - opening < 40 + len(text):
            if text[opening] == 93:
                break
            opening -= 1
        if text[opening] != 91 or not _is_citation(text, opening + 1, end - 1):
            return end
        end = _trim_end(text, traits, start, opening)
    return end


@helper
def _is_citation(text: I32, start: int, end: int) -> bool:
    digits = True
    for i in range(start, end):
        digits = digits and 48 <= text[i] <= 57
    return digits or _equals(text, start, end, "edit") or _equals(text, start, end, "citation needed")


@helper
def _equals(text: I32, start: int, end: int, wanted: str) -> bool:
    if end - start != len(wanted):
        return False
    for i in range(end - start):  # noqa: SIM110 (numba has no generator expressions)
        if text[start + i] != ord(wanted[i]):
            return False
    return True


@helper
def _c4_sentences(text: I32, traits: NDArray[np.uint16], start: int, end: int) -> int:
    """Sentences of a line, -1 for one that C4 drops before it looks for its phrases."""
    if end == start or not traits[text[end - 1]] & _C4_END or _ends_with_dots(text, start, end):
        return -1
    words = length = longest = sentences = 0
    for i in range(start, end):
        if traits[text[i]] & 3 == 0:
            length = 0
            continue
        words += int(length == 0)
        length += 1
        longest = max(longest, length)
    if words < 3 or longest > 1000:
        return -1
    i = start
    while i < end:
        if not traits[text[i]] & _SENTENCE_END:
            i += 1
            continue
        while i < end and traits[text[i]] & _SENTENCE_END:
            i += 1
        while i < end and traits[text[i]] & _CLOSING:
            i += 1
        sentences += int(i == end or traits[text[i]] & 3 == 0)
    return sentences


@helper
def _is_code(text: I32, traits: NDArray[np.uint16], start: int, end: int, visible: int) -> bool:
    if end - start >= 3 and text[start] == 62 and text[start + 1] == 62 and text[start + 2] == 62:
        return True
    if end - start >= 4 and _ends_with_dots(text, start, start + 3) and text[start + 3] == 32:
        return True
    if end - start >= 2 and text[start] == 36 and text[start + 1] == 32:
        return True
    if traits[text[end - 1]] & _CODE_END:
        return True
    code = 0
    for i in range(start, end):
        code += int(traits[text[i]] & _CODE != 0)
    return code / visible >= 0.15


@helper
def _is_fence(text: I32, start: int, end: int) -> bool:
    return end - start >= 3 and text[start] == 96 and text[start + 1] == 96 and text[start + 2] == 96


@helper
def _measure_lines(
    text: I32,
    traits: NDArray[np.uint16],
    phrases: I32,
    phrase_ends: NDArray[np.int64],
    phrase_marks: I32,
    trigger: NDArray[np.bool_],
    hashes: U64,
    lengths: I32,
    filled_flags: NDArray[np.uint8],
    out: F32,
) -> int:
    """All line features but repetition; leaves hash, length and filledness of the non-empty lines for that."""
    lines = bullets = ellipses = filled = terminal = short = lorem = curly = 0
    stripped_total = kept_total = sentences_total = boilerplate = code = visible_total = 0
    fenced = False
    count = 0
    begin = 0
    while begin < len(text):
        stop = begin
        value = np.uint64(0)
        visible = 0
        while stop < len(text) and text[stop] != 10:
            value = value * _P + np.uint64(text[stop])
            visible += int(traits[text[stop]] & 3 != 0)
            stop += 1
        lines += 1
        if stop > begin:
            hashes[count] = value
            lengths[count] = stop - begin
            filled_flags[count] = np.uint8(visible > 0)
            count += 1
        if visible:
            start = begin
            while traits[text[start]] & 3 == 0:
                start += 1
            end = _trim_end(text, traits, start, stop)
            filled += 1
            bullets += int(traits[text[start]] & _BULLET != 0)
            ellipses += int(text[end - 1] == 0x2026 or _ends_with_dots(text, start, end))
            terminal += int(traits[text[end - 1]] & _TERMINAL != 0)
            short += int(stop - begin <= 30)
            stripped_total += end - start
            visible_total += visible
            marks = _line_marks(text[begin:stop], phrases, phrase_ends, phrase_marks, trigger)
            lorem += int(marks & LOREM != 0)
            if marks & BOILERPLATE:
                boilerplate += end - start
            fence = _is_fence(text, start, end)
            if fenced or fence or _is_code(text, traits, start, end, visible):
                code += visible
            fenced = fenced != fence
            kept_end = _strip_citations(text, traits, start, end)
            sentences = _c4_sentences(text, traits, start, kept_end)
            if sentences >= 0 and not marks & JAVASCRIPT:
                for i in range(start, kept_end):
                    curly += int(text[i] == 123)
            if sentences >= 0 and not marks & (POLICY | JAVASCRIPT):
                sentences_total += sentences
                kept_total += kept_end - start
        begin = stop + 1
    out[BULLET_LINE_SHARE] = _share(bullets, lines)
    out[ELLIPSIS_LINE_SHARE] = _share(ellipses, lines)
    out[C4_SENTENCES] = sentences_total
    out[C4_LINE_SHARE] = _share(kept_total, stripped_total)
    out[CURLY_BRACKETS] = curly
    out[LOREM_IPSUM] = lorem
    out[LINE_PUNCTUATION_SHARE] = _share(terminal, filled)
    out[SHORT_LINE_SHARE] = _share(short, filled)
    out[CODE_SHARE] = _share(code, visible_total)
    out[BOILERPLATE_SHARE] = _share(boilerplate, stripped_total)
    return count


@helper
def _table_size(count: int) -> int:
    size = 16
    while size < 2 * count:
        size *= 2
    return size


@helper
def _slot(keys: U64, used: I32, size: int, key: np.uint64) -> int:
    """Where `key` lies, or would lie, in an open-addressing table whose free slots have used == 0."""
    place = np.int64(mix(key) & np.uint64(size - 1))
    while used[place] and keys[place] != key:
        place = (place + 1) & np.int64(size - 1)
    return int(place)


@helper
def _duplicate_lines(
    hashes: U64, lengths: I32, filled: NDArray[np.uint8], count: int, text: I32, keys: U64, used: I32, out: F32
) -> None:
    size = _table_size(count)
    used[:size] = 0
    duplicates = characters = filled_characters = 0
    for i in range(count):
        key = hashes[i] + np.uint64(lengths[i]) * _Q
        place = _slot(keys, used, size, key)
        if used[place]:
            duplicates += 1
            characters += int(lengths[i])
            if filled[i]:
                filled_characters += int(lengths[i])
        used[place] = 1
        keys[place] = key
    newlines = 0
    for i in range(len(text)):
        newlines += int(text[i] == 10)
    out[DUPLICATE_LINE_SHARE] = _share(duplicates, count)
    out[DUPLICATE_LINE_CHAR_SHARE] = _share(characters, len(text))
    out[FINEWEB_DUPLICATE_SHARE] = _share(filled_characters, len(text) - newlines)


@helper
def _duplicate_paragraphs(text: I32, traits: NDArray[np.uint16], keys: U64, used: I32, out: F32) -> None:
    start = 0
    while start < len(text) and traits[text[start]] & 3 == 0:
        start += 1
    end = _trim_end(text, traits, start, len(text))
    used[: _table_size(len(text) // 2 + 1)] = 0
    size = _table_size(len(text) // 2 + 1)
    paragraphs = duplicates = characters = 0
    begin = start
    while begin < end:
        stop = begin
        value = np.uint64(0)
        while stop < end and not (text[stop] == 10 and stop + 1 < end and text[stop + 1] == 10):
            value = value * _P + np.uint64(text[stop])
            stop += 1
        key = value + np.uint64(stop - begin) * _Q
        place = _slot(keys, used, size, key)
        if used[place]:
            duplicates += 1
            characters += stop - begin
        used[place] = 1
        keys[place] = key
        paragraphs += 1
        begin = stop
        while begin < end and text[begin] == 10:
            begin += 1
    out[DUPLICATE_PARAGRAPH_SHARE] = _share(duplicates, max(paragraphs, 1))
    out[DUPLICATE_PARAGRAPH_CHAR_SHARE] = _share(characters, len(text))


@helper
def _ngram_hash(hashes: U64, start: int, n: int) -> np.uint64:
    value = np.uint64(n)
    for k in range(n):
        value = value * _Q + hashes[start + k]
    return value


@helper
def _count_ngrams(hashes: U64, n: int, places: I32, count: int, slots: I32, keys: U64, used: I32) -> None:
    """Count the n-grams at `places`, each in a slot of the table: used[slots[i]] is the count of the i-th."""
    size = _table_size(count)
    used[:size] = 0
    for i in range(count):
        key = _ngram_hash(hashes, int(places[i]), n)
        slot = _slot(keys, used, size, key)
        keys[slot] = key
        used[slot] += 1
        slots[i] = slot


@helper
def _top_ngram(lengths: I32, n: int, places: I32, count: int, slots: I32, used: I32) -> int:
    """Characters that the most frequent repeated n-gram covers; of equally frequent ones, the first."""
    best = 1
    first = 0
    for i in range(count):
        if used[slots[i]] > best:
            best = int(used[slots[i]])
            first = int(places[i])
    if best < 2:
        return 0
    characters = n - 1
    for k in range(n):
        characters += int(lengths[first + k])
    return characters * best


@helper
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
        used[slots[i]] = -abs(used[slots[i]])
    return characters


@helper
def _top_word(hashes: U64, kinds: NDArray[np.uint8], count: int, keys: U64, used: I32) -> int:
    size = _table_size(count)
    used[:size] = 0
    best = 0
    for i in range(count):
        if kinds[i] & 1:
            place = _slot(keys, used, size, hashes[i])
            keys[place] = hashes[i]
            used[place] += 1
            best = max(best, int(used[place]))
    return best


@helper
def _measure_repetition(
    hashes: U64, lengths: I32, words: int, size: int, keys: U64, used: I32, places: I32, slots: I32, out: F32
) -> None:
    """All n-gram features; an n-gram is only repeated where its first n - 1 words are, so few places are counted."""
    count = words
    for i in range(words):
        places[i] = i
    for n in range(2, 11):
        fitting = 0
        while fitting < count and places[fitting] + n <= words:
            fitting += 1
        count = fitting
        _count_ngrams(hashes, n, places, count, slots, keys, used)
        if n <= 4:
            out[TOP_2GRAM_SHARE + n - 2] = _share(_top_ngram(lengths, n, places, count, slots, used), size)
        else:
            out[DUPLICATE_5GRAM_SHARE + n - 5] = _share(_repeated_ngrams(lengths, n, places, count, slots, used), size)
        left = 0
        for i in range(count):
            if abs(used[slots[i]]) > 1:
                places[left] = places[i]
                left += 1
        count = left


@kernel("u1[:]", "i8[:]", "u2[:]", "u8[:]", "i4[:]", "i8[:]", "i4[:]", "b1[:]", "out f4[:,:]")
def _measure_kernel(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    traits: NDArray[np.uint16],
    stop_hashes: U64,
    phrases: I32,
    phrase_ends: NDArray[np.int64],
    phrase_marks: I32,
    trigger: NDArray[np.bool_],
    out: F32,
) -> None:
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    points = np.empty(longest, np.int32)
    hashes = np.empty(longest + 1, np.uint64)
    lengths = np.empty(longest + 1, np.int32)
    kinds = np.empty(longest + 1, np.uint8)
    table = _table_size(longest // 2 + 1)
    keys = np.empty(table, np.uint64)
    used = np.empty(table, np.int32)
    places = np.empty(longest + 1, np.int32)
    slots = np.empty(longest + 1, np.int32)
    for row in range(len(offsets) - 1):
        text = points[: _decode(data[offsets[row] : offsets[row + 1]], points)]
        values = out[row]
        count = _measure_lines(
            text, traits, phrases, phrase_ends, phrase_marks, trigger, hashes, lengths, kinds, values
        )
        _duplicate_lines(hashes, lengths, kinds, count, text, keys, used, values)
        _duplicate_paragraphs(text, traits, keys, used, values)
        count = _split_words(text, traits, hashes, lengths, kinds)
        _count_characters(text, traits, count, values)
        _count_words(hashes, lengths, kinds, count, stop_hashes, values)
        values[MARKUP_SHARE] = _share(_markup(text, traits), len(text))
        values[TOP_WORD_SHARE] = _share(_top_word(hashes, kinds, count, keys, used), count)
        _measure_repetition(hashes, lengths, count, len(text), keys, used, places, slots, values)
