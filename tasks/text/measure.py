"""Measure each document of a shard once: features, language, personal data, blocked words; `filter` judges by them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from tasks.mechanism.shards import Counts
from tasks.mechanism.stage import StageConfig
from tasks.text.documents import write_table

REDACTIONS = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("kind", pa.string())]))


class MeasureConfig(StageConfig):
    """The part of the filter's config that shapes what is measured, and not only how it is judged."""

    languages: tuple[str, ...] = Field(
        ("en",), description="ISO 639-1 codes of the wanted languages; none: any language is kept, none is identified."
    )
    pii: Literal["redact", "drop", "keep"] = Field(
        "redact",
        description="What becomes of emails, public IP addresses, phone and card numbers and secret keys: replaced by "
        "a tag such as [EMAIL], the document dropped, or not looked for.",
    )
    blocked_words: tuple[str, ...] = Field(
        (), description="Words or phrases, any case, counted against max_blocked_words."
    )

    @field_validator("blocked_words")
    @classmethod
    def _can_be_found(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for position, word in enumerate(words):
            if not word.strip():
                raise ValueError(
                    f"word {position + 1} of {len(words)} is {word!r}, which every text would hold: expected a word or "
                    "phrase with a visible character; remove it from filter.blocked_words"
                )
        return words


def measure_shard(inputs: tuple[Path, ...], output: Path, cfg: MeasureConfig) -> Counts:
    """Write what is measured of each document of a shard: one row each, same order."""
    from model.corpus.features.measure import FEATURES, measure
    from model.corpus.words import as_texts

    table = pq.read_table(inputs[0], columns=["doc_id", "text"])
    texts = as_texts(table["text"])
    measured = measure(texts)
    languages, probabilities = _languages(texts, cfg.languages)
    columns: dict[str, pa.Array] = {
        "doc_id": table["doc_id"],
        "bytes": pc.binary_length(texts).cast(pa.int64()),
        "language": languages,
        "language_probability": probabilities,
        "redactions": _redactions(texts, cfg),
        "blocked_words": _blocked_words(texts, cfg.blocked_words),
    }
    for position, name in enumerate(FEATURES):
        columns[name] = pa.array(np.ascontiguousarray(measured[:, position]))
    write_table(pa.table(columns), output)
    return {"documents": len(table), "bytes": float(pc.sum(columns["bytes"]).as_py() or 0)}


def _languages(texts: pa.LargeStringArray, wanted: Sequence[str]) -> tuple[pa.Array, pa.Array]:
    """Code and probability of each text's language; "" and 0 where nobody asks."""
    from model.corpus.language import SAMPLE_CHARACTERS, identify

    if not wanted:
        return pa.array([""] * len(texts), pa.string()), pa.array(np.zeros(len(texts), np.float32))
    # Cut before it becomes Python strings: no more than this is looked at, however long a document is.
    found = identify(pc.utf8_slice_codeunits(texts, 0, SAMPLE_CHARACTERS).to_pylist(), frozenset(wanted))
    codes = pa.array([language.code for language in found], pa.string())
    return codes, pa.array(np.array([language.probability for language in found], np.float32))


def _redactions(texts: pa.LargeStringArray, cfg: MeasureConfig) -> pa.Array:
    from model.corpus.pii import find_personal_data

    if cfg.pii == "keep":
        return pa.array([[]] * len(texts), REDACTIONS)
    return pa.array([[vars(span) for span in spans] for spans in find_personal_data(texts)], REDACTIONS)


def _blocked_words(texts: pa.LargeStringArray, words: Sequence[str]) -> pa.Array:
    """Occurrences of the blocked words in each text, whole words only where a word begins or ends with a letter."""
    if not words:
        return pa.array(np.zeros(len(texts), np.float32))
    # The longest first: of alternatives that begin at one place RE2 takes the first that fits.
    pattern = "|".join(_whole_word(word) for word in sorted(words, key=len, reverse=True))
    return pc.count_substring_regex(texts, pattern, ignore_case=True).cast(pa.float32())


def _whole_word(word: str) -> str:
    """An RE2 pattern; RE2's border of a word knows ASCII only, so other scripts are found anywhere."""
    # Every character by its number: none of them means anything to RE2 then.
    quoted = "".join(rf"\x{{{ord(character):x}}}" for character in word)
    before = r"\b" if word[0].isascii() and word[0].isalnum() else ""
    after = r"\b" if word[-1].isascii() and word[-1].isalnum() else ""
    return before + quoted + after
