"""Judge each document by published rules of quality: measured once, dropped for a stated reason, nothing deleted.

A rule is a field of the config: `min_x` or `max_x` bounds the feature `x`, and a document that fails it is dropped with
the field's name as the reason; so a reason in a report is the knob to turn. Measuring is one memoised pass and judging
another: a changed threshold measures nothing again. Definitions and sources stand in docs/filters.md.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from tasks.mechanism.shards import Counts, ShardJob, map_shards
from tasks.mechanism.stage import Artifact, StageRun, stage
from tasks.text.documents import document_shards, write_table
from tasks.text.measure import MeasureConfig, measure_shard

# Bounds nothing: no text has so many. Exact in float32 (a power of two times 1,953,125), in which rules compare.
_LARGE = 1_000_000_000


class FilterConfig(MeasureConfig):
    """Thresholds of the filter. The defaults suit technical English prose with code examples."""

    # py3langid errs on 2.3 % of paragraphs (model/corpus/language.py): where it is unsure, a document stays.
    min_foreign_probability: float = Field(
        0.8, ge=0, le=1, description="A document is dropped if another language is at least this probable."
    )
    max_blocked_words: int = Field(0, ge=0, description="Maximum occurrences of blocked words.")
    # The order of the fields is the order in which rules are tried. Where defaults are looser than the papers
    # in brackets: those are for web pages, while documentation has code examples and parameter lists.
    min_characters: int = Field(50, ge=0, description="Minimum number of characters.")
    max_characters: int = Field(_LARGE, ge=1, description="Maximum number of characters.")
    min_words: int = Field(10, ge=0, description="Minimum number of words with a letter or digit (Gopher: 50).")
    max_words: int = Field(_LARGE, ge=1, description="Maximum number of words (Gopher: 100,000).")
    min_mean_word_length: float = Field(2.5, ge=0, description="Minimum mean word length (Gopher: 3).")
    max_mean_word_length: float = Field(16, ge=1, description="Maximum mean word length (Gopher: 10).")
    max_longest_word: int = Field(1000, ge=1, description="Maximum word length (C4 drops lines above 1000).")
    max_hash_ratio: float = Field(0.3, ge=0, description="Maximum ratio of `#` to words (Gopher: 0.1).")
    max_ellipsis_ratio: float = Field(0.3, ge=0, description="Maximum ratio of ellipses to words (Gopher: 0.1).")
    max_bullet_line_share: float = Field(0.9, ge=0, le=1, description="Maximum share of bullet lines (Gopher: 0.9).")
    max_ellipsis_line_share: float = Field(
        0.3, ge=0, le=1, description="Maximum share of ellipsis lines (Gopher: 0.3)."
    )
    min_alphabetic_word_share: float = Field(
        0.5, ge=0, le=1, description="Minimum share of words with a letter (Gopher: 0.8)."
    )
    min_stop_words: int = Field(
        1, ge=0, le=8, description="Minimum stop words, out of the, be, to, of, and, that, have, with (Gopher: 2)."
    )
    max_duplicate_line_share: float = Field(
        0.6, ge=0, le=1, description="Maximum share of duplicate lines (Gopher: 0.3)."
    )
    max_duplicate_line_char_share: float = Field(
        0.4, ge=0, le=1, description="Maximum share of characters in duplicate lines (Gopher: 0.2)."
    )
    max_duplicate_paragraph_share: float = Field(
        0.5, ge=0, le=1, description="Maximum share of duplicate paragraphs (Gopher: 0.3)."
    )
    max_duplicate_paragraph_char_share: float = Field(
        0.3, ge=0, le=1, description="Maximum share of characters in duplicate paragraphs (Gopher: 0.2)."
    )
    max_top_2gram_share: float = Field(
        0.3, ge=0, description="Maximum character share of the top 2-gram (Gopher: 0.2)."
    )
    max_top_3gram_share: float = Field(
        0.28, ge=0, description="Maximum character share of the top 3-gram (Gopher: 0.18)."
    )
    max_top_4gram_share: float = Field(
        0.26, ge=0, description="Maximum character share of the top 4-gram (Gopher: 0.16)."
    )
    max_duplicate_5gram_share: float = Field(
        0.4, ge=0, le=1, description="Maximum share of characters in duplicate 5-grams (Gopher: 0.15)."
    )
    max_duplicate_6gram_share: float = Field(
        0.38, ge=0, le=1, description="Maximum share of characters in duplicate 6-grams (Gopher: 0.14)."
    )
    max_duplicate_7gram_share: float = Field(
        0.36, ge=0, le=1, description="Maximum share of characters in duplicate 7-grams (Gopher: 0.13)."
    )
    max_duplicate_8gram_share: float = Field(
        0.34, ge=0, le=1, description="Maximum share of characters in duplicate 8-grams (Gopher: 0.12)."
    )
    max_duplicate_9gram_share: float = Field(
        0.32, ge=0, le=1, description="Maximum share of characters in duplicate 9-grams (Gopher: 0.11)."
    )
    max_duplicate_10gram_share: float = Field(
        0.3, ge=0, le=1, description="Maximum share of characters in duplicate 10-grams (Gopher: 0.10)."
    )
    min_c4_sentences: int = Field(0, ge=0, description="Minimum sentences in the lines that C4 would keep (C4: 5).")
    min_c4_line_share: float = Field(0, ge=0, le=1, description="Minimum share of text in lines that C4 would keep.")
    max_curly_brackets: int = Field(
        _LARGE, ge=0, description="Maximum count of `{` in lines that C4 would judge (C4: 0)."
    )
    max_lorem_ipsum: int = Field(0, ge=0, description="Maximum number of lines with `lorem ipsum` (C4: 0).")
    min_line_punctuation_share: float = Field(
        0, ge=0, le=1, description="Minimum share of lines that end in terminal punctuation (FineWeb: 0.12)."
    )
    max_short_line_share: float = Field(
        0.95, ge=0, le=1, description="Maximum share of lines of at most 30 characters (FineWeb: 0.67)."
    )
    max_fineweb_duplicate_share: float = Field(
        1, ge=0, le=1, description="Maximum share of characters in duplicate lines, without newlines (FineWeb: 0.01)."
    )
    max_newlines_per_word: float = Field(1, ge=0, description="Maximum ratio of newlines to words (FineWeb: 0.3).")
    # From here on no published definition (docs/filters.md, "own").
    max_code_share: float = Field(
        0.85,
        ge=0,
        le=1,
        description="Maximum share of text in lines of code; 0.85: 15 characters of prose on 85 of code.",
    )
    max_markup_share: float = Field(
        0.4, ge=0, le=1, description="Maximum share of text in HTML tags, entities and Markdown link targets."
    )
    max_boilerplate_share: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Maximum share of text in lines with phrases of navigation, cookie banners or footers.",
    )
    max_top_word_share: float = Field(0.3, ge=0, le=1, description="Maximum share of words that are one and the same.")
    max_longest_word_run: int = Field(20, ge=1, description="Maximum repetitions of one word in a row.")
    max_symbol_share: float = Field(0.5, ge=0, le=1, description="Maximum share of symbols among non-space characters.")
    max_digit_share: float = Field(0.3, ge=0, le=1, description="Maximum share of characters that are digits.")


PUBLISHED = FilterConfig(
    min_characters=0,
    min_words=50,
    max_words=100_000,
    min_mean_word_length=3,
    max_mean_word_length=10,
    max_longest_word=_LARGE,
    max_hash_ratio=0.1,
    max_ellipsis_ratio=0.1,
    min_alphabetic_word_share=0.8,
    min_stop_words=2,
    max_duplicate_line_share=0.3,
    max_duplicate_line_char_share=0.2,
    max_duplicate_paragraph_share=0.3,
    max_duplicate_paragraph_char_share=0.2,
    max_top_2gram_share=0.2,
    max_top_3gram_share=0.18,
    max_top_4gram_share=0.16,
    max_duplicate_5gram_share=0.15,
    max_duplicate_6gram_share=0.14,
    max_duplicate_7gram_share=0.13,
    max_duplicate_8gram_share=0.12,
    max_duplicate_9gram_share=0.11,
    max_duplicate_10gram_share=0.10,
    min_c4_sentences=5,
    max_curly_brackets=0,
    min_line_punctuation_share=0.12,
    max_short_line_share=0.67,
    max_fineweb_duplicate_share=0.01,
    max_newlines_per_word=0.3,
    max_code_share=1,
    max_markup_share=1,
    max_boilerplate_share=1,
    max_top_word_share=1,
    max_longest_word_run=_LARGE,
    max_symbol_share=1,
    max_digit_share=1,
)
"""Gopher, C4 and FineWeb with the thresholds of their papers, and nothing else: for web pages."""


@dataclass(frozen=True)
class Rule:
    """One bound on one feature; `reason` is the config field that holds the bound."""

    reason: str
    feature: str
    side: Literal["min", "max"]

    def fails(self, values: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
        """Which values break the bound; both sides as float32, so that a ratio equal to its threshold passes."""
        bound = np.float32(threshold)
        return values < bound if self.side == "min" else values > bound


def _rule(field: str) -> Rule:
    side, _, feature = field.partition("_")
    return Rule(field, feature, "min" if side == "min" else "max")


LANGUAGE_REASON, PII_REASON = "min_foreign_probability", "pii"
# min_foreign_probability bounds no feature, though it begins like one.
RULES: tuple[Rule, ...] = tuple(
    _rule(name) for name in FilterConfig.model_fields if name.startswith(("min_", "max_")) and name != LANGUAGE_REASON
)
"""All threshold rules in the order in which they are tried; the first that a document fails is its reason."""


def reasons(features: pa.Table, cfg: FilterConfig) -> pa.StringArray:
    """Why each measured document is dropped, "" for one that is kept: a pure function, so forensics can ask "what if".

    Args:
        features: columns as `measure_shard` writes them.
        cfg: the thresholds.
    """
    names = np.array(["", LANGUAGE_REASON, *(rule.reason for rule in RULES), PII_REASON])
    first = np.zeros(len(features), np.int64)
    foreign = _foreign(features, cfg)
    first[foreign] = 1
    for position, rule in enumerate(RULES, start=2):
        failed = rule.fails(features[rule.feature].to_numpy(), getattr(cfg, rule.reason))
        first[failed & (first == 0)] = position
    # Last: so each threshold is told all that it drops, whether or not personal data would drop it too.
    if cfg.pii == "drop":
        spans = pc.list_value_length(features["redactions"]).to_numpy()
        first[(spans > 0) & (first == 0)] = len(names) - 1
    return pa.array(names[first], pa.string())


def _foreign(features: pa.Table, cfg: FilterConfig) -> NDArray[np.bool_]:
    if not cfg.languages:
        return np.zeros(len(features), np.bool_)
    wanted = pc.is_in(features["language"], pa.array(cfg.languages, pa.string())).to_numpy()
    probability = features["language_probability"].to_numpy()
    found: NDArray[np.bool_] = ~wanted & (probability >= np.float32(cfg.min_foreign_probability))
    return found


def judge_shard(inputs: tuple[Path, ...], output: Path, cfg: FilterConfig) -> Counts:
    """Write the attribute shard: what was measured, the verdict and its reason."""
    features = pq.read_table(inputs[0])
    reason = reasons(features, cfg)
    keep = pc.equal(reason, "")
    columns = {"doc_id": features["doc_id"], "keep": keep, "reason": reason}
    # As the rules are listed, so that bytes do not depend on the order in which the kernel happens to measure.
    ruled = [rule.feature for rule in RULES]
    others = [name for name in features.column_names if name not in ruled]
    columns |= {name: features[name] for name in dict.fromkeys([*others, *ruled])}
    write_table(pa.table(columns), output)
    return _count(features, keep, reason)


def _count(features: pa.Table, keep: pa.BooleanArray, reason: pa.StringArray) -> Counts:
    sizes = features["bytes"]
    counts = {
        "documents_in": float(len(features)),
        "documents_kept": float(pc.sum(keep).as_py() or 0),
        "bytes_in": float(pc.sum(sizes).as_py() or 0),
        "bytes_kept": float(pc.sum(sizes.filter(keep)).as_py() or 0),
    }
    for name, number in Counter(reason.to_pylist()).items():
        if name:
            counts[f"dropped/{name}"] = float(number)
    spans = pc.list_flatten(features["redactions"].combine_chunks())
    for kind, number in Counter(spans.field("kind").to_pylist()).items():
        counts[f"pii/{kind}"] = float(number)
    return counts


def _refuse_empty(counts: Counts) -> None:
    """Raise if nothing is left, naming the rule that dropped most."""
    if counts.get("documents_kept"):
        return
    total = int(counts.get("documents_in", 0))
    dropped = {name.removeprefix("dropped/"): int(n) for name, n in counts.items() if name.startswith("dropped/")}
    if not dropped:
        raise ValueError("The filter was given no documents: expected at least one. Check what ingest read.")
    worst = sorted(dropped, key=lambda name: (-dropped[name], name))
    listed = ", ".join(f"{name} {dropped[name]:,}" for name in worst[:5])
    raise ValueError(
        f"The filter keeps none of {total:,} documents. Most were dropped by {worst[0]} ({dropped[worst[0]]:,}); all "
        f"reasons: {listed}. Loosen filter.{worst[0]}; `bessemer inspect filter` shows what each threshold drops."
    )


@stage("filter", version=1, figures=("documents_in", "documents_kept"))
def filter(run: StageRun, cfg: FilterConfig, documents: Artifact) -> None:
    """Measure and judge every document.

    Raises:
        ValueError: no document is left, or there was none.
    """
    measured = run.scratch / "measured"
    shards = document_shards(documents)
    # Of the measured part alone: with other thresholds the memo has all measurements.
    measure_cfg = MeasureConfig(**{name: getattr(cfg, name) for name in MeasureConfig.model_fields})
    map_shards(run, measure_shard, [ShardJob((shard,), measured / shard.name) for shard in shards], measure_cfg)
    jobs = [ShardJob((measured / shard.name,), run.out / "attributes" / shard.name) for shard in shards]
    totals: Counter[str] = Counter()
    for counts in map_shards(run, judge_shard, jobs, cfg):
        totals.update({name: int(number) for name, number in counts.items()})
    _refuse_empty(totals)
    for name in ("documents_in", "documents_kept", "bytes_in", "bytes_kept", *sorted(totals)):
        run.metric(name, totals[name])
    run.say(f"{totals['documents_kept']:,} of {totals['documents_in']:,} documents kept")
