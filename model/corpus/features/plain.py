"""The features of a document in plain Python: the readable definition, the oracle of the kernel, and its stand-in."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from model.corpus.features import names as names
from model.corpus.features.names import DIGIT, LETTER, SPACE, SYMBOL, character_classes

_CITATION = re.compile(r"\[[0-9]*\]$|\[edit\]$|\[citation needed\]$")
_SENTENCE_END = re.compile(rf"[{names.SENTENCE_ENDS}]+[{re.escape(names.CLOSING)}]*(?=\s|$)")
_TAG = rf"<[A-Za-z/!?][^<>]{{0,{names.LONGEST_TAG}}}>"
_ENTITY = rf"&[A-Za-z0-9#]{{2,{names.LONGEST_ENTITY}}};"
_LINK_TARGET = rf"\]\([^\s()]{{0,{names.LONGEST_LINK}}}\)"
_MARKUP = re.compile(f"{_TAG}|{_ENTITY}|{_LINK_TARGET}")


def measure_plain(text: str) -> list[float]:
    """The value of each feature of one text, in the order of FEATURES."""
    values = _characters_and_words(text) | _lines(text) | _repetition(text) | _single_words(text)
    return [float(values[name]) for name in names.FEATURES]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _classes(text: str) -> list[int]:
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    found: list[int] = character_classes()[points].tolist()
    return found


def _has(word: str, *classes: int) -> bool:
    return any(found in classes for found in _classes(word))


def _characters_and_words(text: str) -> dict[str, float]:
    words = text.split()
    real = [word for word in words if _has(word, LETTER, DIGIT)]
    classes = Counter(_classes(text))
    visible = len(text) - classes[SPACE]
    markup = sum(map(len, _MARKUP.findall(text)))
    return {
        "characters": len(text),
        "words": len(real),
        "mean_word_length": _share(sum(map(len, real)), len(real)),
        "longest_word": max(map(len, words), default=0),
        "hash_ratio": _share(text.count("#"), len(words)),
        "ellipsis_ratio": _share(text.count("...") + text.count(names.ELLIPSIS), len(words)),
        "alphabetic_word_share": _share(sum(_has(word, LETTER) for word in words), len(words)),
        "stop_words": len(set(words) & set(names.STOP_WORDS)),
        "newlines_per_word": _share(text.count("\n"), len(words)),
        "markup_share": _share(markup, len(text)),
        "symbol_share": _share(classes[SYMBOL], visible),
        "digit_share": _share(classes[DIGIT], visible),
    }


def _lines(text: str) -> dict[str, float]:
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    filled = [line for line in lines if line.strip()]
    judged = [line for line in map(_c4_strip, filled) if _c4_judges(line)]
    kept = [line for line in judged if not _marks(line) & (names.POLICY | names.JAVASCRIPT)]
    return {
        "bullet_line_share": _share(sum(line.lstrip().startswith(tuple(names.BULLETS)) for line in lines), len(lines)),
        "ellipsis_line_share": _share(sum(_ends_in_ellipsis(line) for line in lines), len(lines)),
        "c4_sentences": sum(max(len(_SENTENCE_END.findall(line)), 1) for line in kept),
        "c4_line_share": _share(sum(map(len, kept)), sum(len(line.strip()) for line in filled)),
        "curly_brackets": sum(line.count("{") for line in judged if not _marks(line) & names.JAVASCRIPT),
        "lorem_ipsum": sum(bool(_marks(line) & names.LOREM) for line in filled),
        "line_punctuation_share": _share(
            sum(line.rstrip().endswith(tuple(names.TERMINAL_PUNCTUATION)) for line in filled), len(filled)
        ),
        "short_line_share": _share(sum(len(line) <= names.SHORT_LINE_CHARACTERS for line in filled), len(filled)),
        "fineweb_duplicate_share": _share(_duplicates(filled)[1], len(text) - text.count("\n")),
        "code_share": _code_share(filled),
        "boilerplate_share": _share(
            sum(len(line.strip()) for line in filled if _marks(line) & names.BOILERPLATE),
            sum(len(line.strip()) for line in filled),
        ),
    }


def _ends_in_ellipsis(line: str) -> bool:
    return line.rstrip().endswith(("...", names.ELLIPSIS))


def _marks(line: str) -> int:
    """Flags of the phrases in a line; lower-cased as ASCII only, so that the Kelvin sign is no `k`."""
    lowered = line.encode().lower().decode()
    return sum({mark for phrase, flags in names.PHRASES if phrase in lowered for mark in _bits(flags)})


def _bits(flags: int) -> list[int]:
    return [1 << bit for bit in range(4) if flags >> bit & 1]


def _c4_strip(line: str) -> str:
    line = line.strip()
    while found := _CITATION.search(line):
        line = line[: found.start()].rstrip()
    return line


def _c4_judges(line: str) -> bool:
    """Whether C4 goes on to look for its phrases in this line of a page, or drops it at once."""
    words = line.split()
    return (
        line.endswith(tuple(names.C4_LINE_ENDS))
        and not line.endswith("...")
        and len(words) >= names.C4_LINE_WORDS
        and max(map(len, words)) <= names.C4_LONGEST_WORD
    )


def _code_share(filled: Sequence[str]) -> float:
    code = visible = 0
    fenced = False
    for line in filled:
        stripped = line.strip()
        size = sum(found != SPACE for found in _classes(stripped))
        visible += size
        fence = stripped.startswith("```")
        if fenced or fence or _is_code(stripped, size):
            code += size
        fenced ^= fence
    return _share(code, visible)


def _is_code(stripped: str, size: int) -> bool:
    return (
        stripped.startswith((">>>", "... ", "$ "))
        or stripped.endswith(tuple(names.CODE_LINE_ENDS))
        or sum(character in names.CODE_CHARACTERS for character in stripped) / size >= names.CODE_LINE_SHARE
    )


def _duplicates(pieces: Sequence[str]) -> tuple[int, int]:
    """How many pieces occurred before, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        seen.add(piece)
    return count, characters


def _repetition(text: str) -> dict[str, float]:
    words = text.split()
    lines = [line for line in text.split("\n") if line]
    paragraphs = re.split(r"\n{2,}", text.strip())
    line_count, line_characters = _duplicates(lines)
    paragraph_count, paragraph_characters = _duplicates(paragraphs)
    values = {
        "duplicate_line_share": _share(line_count, len(lines)),
        "duplicate_line_char_share": _share(line_characters, len(text)),
        "duplicate_paragraph_share": _share(paragraph_count, len(paragraphs)),
        "duplicate_paragraph_char_share": _share(paragraph_characters, len(text)),
    }
    for n in (2, 3, 4):
        values[f"top_{n}gram_share"] = _share(_top_ngram(words, n), len(text))
    for n in range(5, 11):
        values[f"duplicate_{n}gram_share"] = _share(_repeated_ngrams(words, n), len(text))
    return values


def _top_ngram(words: Sequence[str], n: int) -> int:
    """Characters that the most frequent repeated n-gram covers; of equally frequent ones, the first."""
    ngrams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    ngram, count = max(ngrams.items(), key=lambda item: item[1], default=("", 0))
    return len(ngram) * count if count > 1 else 0


def _repeated_ngrams(words: Sequence[str], n: int) -> int:
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


def _single_words(text: str) -> dict[str, float]:
    words = text.split()
    lettered = [word for word in words if _has(word, LETTER)]
    runs = [sum(1 for _ in run) for word, run in groupby(words) if _has(word, LETTER)]
    return {
        "top_word_share": _share(max(Counter(lettered).values(), default=0), len(words)),
        "longest_word_run": max(runs, default=0),
    }
