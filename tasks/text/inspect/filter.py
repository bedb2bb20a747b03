"""What the filter dropped and why, with samples, and what other thresholds would do.

Nothing is computed again: the filter's attribute shards hold every measured feature, so "what if" is a comparison.
"""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.mechanism.stage import Artifact
from tasks.text.documents import aligned_shards
from tasks.text.filter import LANGUAGE_REASON, PII_REASON, RULES, FilterConfig, reasons

EXCERPT_CHARACTERS = 240
_FEATURE_OF = {LANGUAGE_REASON: "language_probability", **{rule.reason: rule.feature for rule in RULES}}


@dataclass(frozen=True)
class Sample:
    """A document as a person looks at it; `value` is what its rule is about: a feature, or how much personal data."""

    doc_id: str
    origin: str
    value: float
    excerpt: str


@dataclass(frozen=True)
class Drops:
    """What one rule dropped; personal data has no threshold."""

    reason: str
    threshold: float | None
    documents: int
    bytes: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class FilterReport:
    """What the filter did, rule by rule, the busiest first."""

    documents_in: int
    documents_kept: int
    bytes_in: int
    bytes_kept: int
    drops: tuple[Drops, ...]


@dataclass(frozen=True)
class WhatIf:
    """What other thresholds would change."""

    newly_dropped: int
    newly_kept: int
    dropped: tuple[Drops, ...]
    kept: tuple[Drops, ...]


def filter_report(documents: Artifact, filtered: Artifact, cfg: FilterConfig, samples: int = 3) -> FilterReport:
    """Count and sample what each rule dropped.

    Args:
        documents: the artifact that was filtered.
        filtered: the filter's artifact.
        cfg: the config that it was made with.
        samples: documents shown of each rule; those with the smallest ids, which are as good as random.
    """
    features = all_features(documents, filtered)
    kept = pc.equal(features["reason"], "")
    drops = _grouped(documents, features, features["reason"], cfg, samples)
    return FilterReport(
        documents_in=len(features),
        documents_kept=int(pc.sum(kept).as_py() or 0),
        bytes_in=int(pc.sum(features["bytes"]).as_py() or 0),
        bytes_kept=int(pc.sum(features["bytes"].filter(kept)).as_py() or 0),
        drops=drops,
    )


def what_if(
    documents: Artifact, filtered: Artifact, before: FilterConfig, after: FilterConfig, samples: int = 3
) -> WhatIf:
    """What the thresholds `after` would newly drop and newly keep; samples as in `filter_report`.

    Raises:
        ValueError: the configs differ in what is measured, so that an answer needs a run.
    """
    for name in ("languages", "pii", "blocked_words"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            raise ValueError(
                f"filter.{name} was {old!r} and would be {new!r}: that changes what is measured, not only how it is "
                "judged. Run the pipeline with it; only documents not seen before are read again."
            )
    features = all_features(documents, filtered)
    old, new = reasons(features, before), reasons(features, after)
    was_kept, stays = pc.equal(old, ""), pc.equal(new, "")
    gone, back = pc.and_(was_kept, pc.invert(stays)), pc.and_(pc.invert(was_kept), stays)
    return WhatIf(
        newly_dropped=int(pc.sum(gone).as_py() or 0),
        newly_kept=int(pc.sum(back).as_py() or 0),
        dropped=_grouped(documents, features.filter(gone), new.filter(gone), after, samples),
        kept=_grouped(documents, features.filter(back), old.filter(back), before, samples),
    )


def all_features(documents: Artifact, filtered: Artifact) -> pa.Table:
    """The attribute rows of all shards, with the shard's number and the row in it."""
    tables = []
    for number, (_, path) in enumerate(aligned_shards(documents, filtered)):
        table = pq.read_table(path)
        table = table.append_column("shard", pa.array(np.full(len(table), number), pa.int32()))
        tables.append(table.append_column("row", pa.array(np.arange(len(table)), pa.int32())))
    return pa.concat_tables(tables)


def _grouped(
    documents: Artifact, features: pa.Table, reason: pa.ChunkedArray, cfg: FilterConfig, samples: int
) -> tuple[Drops, ...]:
    """Drops by reason, the most frequent first."""
    counts = Counter(reason.to_pylist())
    counts.pop("", None)
    chosen: dict[str, pa.Table] = {}
    for name in counts:
        group = features.filter(pc.equal(reason, name))
        # Ids are hashes: the smallest are a random sample, and the same each time.
        chosen[name] = group.take(pc.sort_indices(group["doc_id"])[:samples])
    wanted = pa.concat_tables(list(chosen.values())) if chosen else features.slice(0, 0)
    texts = beginnings(documents, wanted)
    found = []
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        size = int(pc.sum(features["bytes"].filter(pc.equal(reason, name))).as_py() or 0)
        rows = tuple(
            Sample(row["doc_id"], *texts[row["doc_id"]][:1], _value(row, name), texts[row["doc_id"]][1])
            for row in chosen[name].to_pylist()
        )
        found.append(Drops(name, _threshold(cfg, name), count, size, rows))
    return tuple(found)


def _value(row: Mapping[str, Any], reason: str) -> float:
    if reason == PII_REASON:
        return float(len(row["redactions"]))
    return float(row[_FEATURE_OF[reason]])


def _threshold(cfg: FilterConfig, reason: str) -> float | None:
    return None if reason == PII_REASON else float(getattr(cfg, reason))


def beginnings(documents: Artifact, rows: pa.Table) -> dict[str, tuple[str, str]]:
    """Origin and beginning of the documents named by (shard, row); reads only the shards concerned."""
    found: dict[str, tuple[str, str]] = {}
    shards = [path for (path,) in aligned_shards(documents)]
    for number in sorted(set(rows["shard"].to_pylist())):
        table = pq.read_table(shards[number], columns=["doc_id", "origin", "text"])
        here = rows.filter(pc.equal(rows["shard"], number))["row"]
        for row in table.take(here).to_pylist():
            found[row["doc_id"]] = (row["origin"], row["text"][:EXCERPT_CHARACTERS])
    return found


def render_filter_report(report: FilterReport) -> str:
    """The report as text for a terminal."""
    share = 100 * report.documents_kept / max(report.documents_in, 1)
    lines = [
        f"{report.documents_kept:,} of {report.documents_in:,} documents kept ({share:.1f} %), "
        f"{report.bytes_kept / 1e6:.1f} of {report.bytes_in / 1e6:.1f} MB",
        "",
    ]
    return "\n".join(lines) + _render_drops(report.drops, report.documents_in)


def render_what_if(answer: WhatIf) -> str:
    """The answer as text for a terminal."""
    parts = [f"newly dropped: {answer.newly_dropped:,}   newly kept: {answer.newly_kept:,}\n"]
    if answer.dropped:
        parts.append("NEWLY DROPPED, by the rule that drops them\n" + _render_drops(answer.dropped, 0))
    if answer.kept:
        parts.append("NEWLY KEPT, by the rule that dropped them\n" + _render_drops(answer.kept, 0))
    return "\n".join(parts)


def _render_drops(drops: Sequence[Drops], total: int) -> str:
    lines = []
    for drop in drops:
        share = f" ({100 * drop.documents / total:.2f} %)" if total else ""
        threshold = "" if drop.threshold is None else f" = {drop.threshold:g}"
        lines.append(f"{drop.reason}{threshold}: {drop.documents:,} documents{share}, {drop.bytes / 1e6:.2f} MB")
        for sample in drop.samples:
            excerpt = " ".join(sample.excerpt.split())
            lines.append(f"    {sample.value:.3g}  {sample.origin}")
            lines += textwrap.wrap(excerpt, 110, initial_indent="      | ", subsequent_indent="      | ")
        lines.append("")
    return "\n".join(lines)
