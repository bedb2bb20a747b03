"""Who is whose duplicate: the largest families, and sample pairs side by side."""

import difflib
import textwrap
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.mechanism.stage import Artifact
from tasks.text.dedup.dedup import EXACT, FILTERED, NEAR
from tasks.text.documents import aligned_shards

EXCERPT_CHARACTERS = 240
DIFF_WORDS = 3000
"""Pairs are compared over this many words: the cost grows with the square."""


@dataclass(frozen=True)
class Pair:
    """A dropped document beside its witness."""

    dropped_origin: str
    kept_origin: str
    similarity: float
    kind: str
    dropped_text: str
    kept_text: str


@dataclass(frozen=True)
class Family:
    """A kept document and how many were dropped for it."""

    kept_origin: str
    dropped: int
    excerpt: str
    dropped_origins: tuple[str, ...]


@dataclass(frozen=True)
class DedupReport:
    """What dedup did: the largest families, and sample pairs from the least similar to the most."""

    documents_in: int
    exact: int
    near: int
    histogram: tuple[tuple[float, int], ...]
    families: tuple[Family, ...]
    pairs: tuple[Pair, ...]


def dedup_report(documents: Artifact, deduplicated: Artifact, families: int = 5, pairs: int = 5) -> DedupReport:
    """Gather the largest families of duplicates and samples of near-duplicate pairs."""
    table = pq.read_table(deduplicated.path / "pairs.parquet")
    kinds = Counter(table["kind"].to_pylist())
    judged = sum(
        int(pc.sum(pc.not_equal(pq.read_table(path, columns=["reason"])["reason"], FILTERED)).as_py() or 0)
        for _, path in aligned_shards(documents, deduplicated)
    )
    members: dict[str, list[str]] = defaultdict(list)
    for dropped, kept in zip(table["dropped"].to_pylist(), table["kept"].to_pylist()):
        members[kept].append(dropped)
    largest = sorted(members, key=lambda kept: (-len(members[kept]), kept))[:families]
    near = table.filter(pc.equal(table["kind"], NEAR)).sort_by([("similarity", "ascending")]).to_pylist()
    # Evenly over all similarities: the least similar are the ones to doubt.
    picked = [near[i] for i in np.unique(np.linspace(0, len(near) - 1, min(pairs, len(near))).astype(int))]
    wanted = {*largest, *(name for row in picked for name in (row["dropped"], row["kept"]))}
    wanted.update(name for kept in largest for name in members[kept][:3])
    texts = dict(_named_texts(documents, wanted))
    counts, edges = np.histogram(table["similarity"].to_numpy(), bins=10, range=(0, 1))
    return DedupReport(
        documents_in=judged,
        exact=kinds[EXACT],
        near=kinds[NEAR],
        histogram=tuple((round(float(edge), 1), int(count)) for edge, count in zip(edges, counts)),
        families=tuple(
            Family(
                texts[kept][0],
                len(members[kept]),
                texts[kept][1][:EXCERPT_CHARACTERS],
                tuple(texts[name][0] for name in members[kept][:3]),
            )
            for kept in largest
        ),
        pairs=tuple(
            Pair(
                texts[row["dropped"]][0],
                texts[row["kept"]][0],
                row["similarity"],
                row["kind"],
                texts[row["dropped"]][1],
                texts[row["kept"]][1],
            )
            for row in picked
        ),
    )


def _named_texts(documents: Artifact, wanted: Collection[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """(id, (origin, text)) of the documents with these ids."""
    ids = pa.array(sorted(wanted), pa.string())
    for (path,) in aligned_shards(documents):
        names = pq.read_table(path, columns=["doc_id"])["doc_id"]
        here = pc.is_in(names, ids)
        if pc.any(here).as_py():
            for row in pq.read_table(path, columns=["doc_id", "origin", "text"]).filter(here).to_pylist():
                yield row["doc_id"], (row["origin"], row["text"])


def render_dedup_report(report: DedupReport, width: int = 120) -> str:
    """The report as text for a terminal."""
    lines = [
        f"{report.documents_in:,} documents, {report.exact:,} exact and {report.near:,} near duplicates dropped",
        "",
    ]
    if report.exact + report.near:
        lines += ["similarity with the witness"]
        most = max(count for _, count in report.histogram)
        lines += [
            f"  {edge:.1f}+ {'#' * round(50 * count / most)} {count:,}" for edge, count in report.histogram if count
        ]
    for family in report.families:
        lines += ["", f"family of {family.dropped + 1:,}: kept {family.kept_origin}"]
        lines += textwrap.wrap(
            " ".join(family.excerpt.split()), width - 4, initial_indent="  | ", subsequent_indent="  | "
        )
        more = family.dropped - len(family.dropped_origins)
        lines.append(f"  dropped: {', '.join(family.dropped_origins)}{f' and {more:,} more' if more else ''}")
    for pair in report.pairs:
        lines += ["", f"similarity {pair.similarity:.3f}", *side_by_side(pair, width)]
    return "\n".join(lines) + "\n"


def side_by_side(pair: Pair, width: int = 120) -> list[str]:
    """The kept document left, the dropped one right; runs of equal words are only counted."""
    half = (width - 3) // 2
    left, right = pair.kept_text.split()[:DIFF_WORDS], pair.dropped_text.split()[:DIFF_WORDS]
    lines = [f"{_cut('kept ' + pair.kept_origin, half):<{half}} | {_cut('dropped ' + pair.dropped_origin, half)}"]
    # autojunk, on by default, passes over words that make up 1 % of 200 or more: "the", of all prose.
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for operation, i, j, k, m in matcher.get_opcodes():
        if operation == "equal":
            lines.append(f"  … {j - i:,} words alike …")
            continue
        cells = [textwrap.wrap(" ".join(words), half) for words in (left[i:j], right[k:m])]
        for row in range(min(max(map(len, cells)), 12)):
            a, b = (cell[row] if row < len(cell) else "" for cell in cells)
            lines.append(f"{a:<{half}} | {b}")
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
