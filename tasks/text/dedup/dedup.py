"""Drop documents that repeat an earlier one, exactly or nearly; each drop is recorded with its verified witness.

Keep-first in canonical order (see model/corpus/keep_first.py): a document goes if an earlier *kept* one has the same
normalised text, or shares an LSH bucket with it and enough of its real shingles. Signing is mapped over shards; the
verdicts are sequential but cheap, and an index of what was kept (index.py) carries them from run to run, so new shards
at the end cost only themselves. Only that index is global and not bounded by the shard: on disk and memory
mapped, about 300 bytes a kept document at the defaults, and 4 bytes for each shingle that drops are verified on.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from tasks.mechanism.identity import code_digest
from tasks.mechanism.shards import ShardJob, map_shards
from tasks.mechanism.stage import Artifact, StageRun, stage
from tasks.mechanism.store import Store, file_sha256, link_or_copy
from tasks.text.dedup.index import DedupIndex, chain_keys
from tasks.text.dedup.segment import IndexParameters
from tasks.text.dedup.signatures import SignConfig, Signed, read_signed, sign_shard
from tasks.text.dedup.verdicts import Judged, judge
from tasks.text.documents import aligned_shards, write_table

if TYPE_CHECKING:
    from model.corpus.keep_first import Rule

FILTERED, EXACT, NEAR = "filtered", "exact_duplicate", "near_duplicate"
"""Reasons. A document that a judge before has dropped is `filtered`: it takes no part, and is nobody's witness."""
MISSED_BY_SIEVE = 3e-7
"""Probability that sketches agree too little for a pair of just the threshold's similarity to be compared."""
PAIRS_SCHEMA = pa.schema(
    [("dropped", pa.string()), ("kept", pa.string()), ("similarity", pa.float64()), ("kind", pa.string())]
)


class DedupConfig(SignConfig):
    """What counts as a duplicate."""

    similarity: Literal["jaccard", "containment"] = Field(
        "jaccard",
        description="Of two sets of shingles: Jaccard (intersection over union), or containment (the share of the "
        "later document's shingles that the earlier one has), which finds excerpts.",
    )
    # With the default bands a pair of J = 0.75 is a candidate with probability 0.77, one of 0.8 with 0.92.
    threshold: float = Field(0.75, gt=0, le=1, description="Similarity from which on a document is a near-duplicate.")
    bucket_size: int = Field(
        # Measured with 8: recall 0.998 of 23,723 pairs with J ≥ 0.8 among 52,000 documents (benchmarks/RESULTS.md).
        8,
        ge=1,
        le=1000,
        description="Maximum number of kept documents per LSH bucket that a document is compared with.",
    )


def rule_of(cfg: DedupConfig) -> "Rule":
    """When a document repeats another, as the kernel takes it."""
    from model.corpus.keep_first import Rule

    # A number, since the rule goes into a compiled kernel.
    return Rule(cfg.bucket_size, cfg.threshold, int(cfg.similarity == "containment"), least_agreement(cfg))


def least_agreement(cfg: DedupConfig) -> int:
    """In how many places of their sketches two documents must agree to be worth comparing.

    Of two documents of Jaccard similarity s, each place agrees with probability s; of containment it says nothing.
    """
    if cfg.similarity == "containment":
        return 0
    # By default 60 of 112 places; low bytes also agree by chance, which only lets more pairs through.
    places, likely = cfg.bands * cfg.rows, 0.0
    if cfg.threshold == 1:  # equal sets have equal sketches; and log1p(-1) is minus infinity
        return places
    for least in range(places):
        others = places - least
        # In logarithms: the largest setting has 2,048 places, whose binomials (10^600) are no floats.
        ways = math.lgamma(places + 1) - math.lgamma(least + 1) - math.lgamma(others + 1)
        likely += math.exp(ways + least * math.log(cfg.threshold) + others * math.log1p(-cfg.threshold))
        if likely > MISSED_BY_SIEVE:  # of agreeing in `least` places or fewer
            return least
    return places


def _attributes(document_shard: Path, signed: Signed, judged: Judged) -> pa.Table:
    """The attribute rows of all documents of a shard, those dropped before included."""
    doc_ids = pq.read_table(document_shard, columns=["doc_id"])["doc_id"]
    reason = np.full(len(doc_ids), FILTERED, object)  # objects: a fixed width would cut names that are longer
    duplicate_of = np.full(len(doc_ids), "", object)
    similarity = np.zeros(len(doc_ids), np.float64)
    reason[signed.rows] = np.array(["", EXACT, NEAR], object)[judged.kind]
    duplicate_of[signed.rows] = judged.duplicate_of
    similarity[signed.rows] = judged.similarity
    return pa.table(
        {
            "doc_id": doc_ids,
            "keep": pa.array(reason == ""),
            "reason": pa.array(reason, pa.string()),
            "duplicate_of": pa.array(duplicate_of, pa.string()),
            "similarity": pa.array(similarity),
        }
    )


def index_parameters(cfg: DedupConfig) -> IndexParameters:
    """What an index must have been written with to serve this config."""
    from model.corpus.minhash import SCHEME
    from model.corpus.words import WORD_RULES

    return IndexParameters(
        SCHEME, cfg.seed, WORD_RULES, cfg.shingle_words, cfg.bands, cfg.rows, cfg.bucket_size, cfg.similarity,
        cfg.threshold,
    )  # fmt: skip


def index_folder(store: Store) -> Path:
    """Where the index of a store lies."""
    return store.home / "index" / "dedup"


def _judge_new_shards(
    run: StageRun, cfg: DedupConfig, index: DedupIndex, shards: list[Path], signed: list[Path]
) -> None:
    """Judge the shards after the longest known beginning, committing each to the index."""
    known = index.resumable()
    rule = rule_of(cfg)
    if known == len(shards):
        return
    with run.progress("judge shards", sum(path.stat().st_size for path in signed[known:]), "bytes") as bar:
        for shard in range(known, len(shards)):
            # One after the other by design, since keep-first depends on order; its price is in docs/scale.md.
            documents = read_signed(signed[shard])
            judged = judge(documents, shard, index, cfg, rule)
            aside = run.scratch / "verdicts.parquet"
            write_table(_attributes(shards[shard], documents, judged), aside)
            # In this order: a shard counts as judged by its verdicts, so what later shards compare with is there
            # before, and where a crash leaves no whole segment, `resumable` stops one shard earlier.
            index.keep_signed(shard, signed[shard])
            index.keep_verdicts(shard, aside)
            index.commit(shard, judged.segment)
            bar.advance(signed[shard].stat().st_size)


def _publish(run: StageRun, index: DedupIndex, shards: Sequence[Path]) -> Counter[str]:
    """Put the verdicts into the artifact with the list of pairs, and count."""
    totals: Counter[str] = Counter()
    with pq.ParquetWriter(run.out / "pairs.parquet", PAIRS_SCHEMA, compression="zstd", write_statistics=False) as pairs:
        for number, shard in enumerate(shards):
            target = run.out / "attributes" / shard.name
            # A second name where the file system has hard links: known shards cost no bytes and no writing.
            link_or_copy(index.verdict_path(number), target)
            table = pq.read_table(target, columns=["doc_id", "reason", "duplicate_of", "similarity"])
            totals.update(table["reason"].to_pylist())
            dropped = table.filter(pc.not_equal(table["duplicate_of"], ""))
            columns = [dropped[name] for name in ("doc_id", "duplicate_of", "similarity", "reason")]
            pairs.write_table(pa.table(columns, schema=PAIRS_SCHEMA))
    return totals


@stage("dedup", version=1, figures=("documents_in", "documents_kept", "duplicates_exact", "duplicates_near"))
def dedup(run: StageRun, cfg: DedupConfig, documents: Artifact, **judged: Artifact) -> None:
    """Judge every document left so far; attributes as everywhere, and all (dropped, kept) pairs."""
    aligned = aligned_shards(documents, *judged.values())
    shards = [document_shard for document_shard, *_ in aligned]
    signed = [run.scratch / "signed" / f"{shard.stem}.arrow" for shard in shards]
    # Of the sketch alone: another threshold finds the signatures of all shards in the memo.
    sign_cfg = SignConfig(**{name: getattr(cfg, name) for name in SignConfig.model_fields})
    map_shards(run, sign_shard, [ShardJob(paths, path) for paths, path in zip(aligned, signed)], sign_cfg)
    digests = [f"{file_sha256(shard)} {file_sha256(path)}" for shard, path in zip(shards, signed)]
    parameters = index_parameters(cfg)
    # The code too: verdicts of an older rule must not be continued.
    keys = chain_keys(parameters, code_digest(__name__), digests)
    index = DedupIndex(index_folder(run.store), parameters, keys)
    with run.store.lock("dedup", "index"):  # two runs may share a beginning, and merging removes what it merged
        index.claim(run.scratch.name)
        _judge_new_shards(run, cfg, index, shards, signed)
    totals = _publish(run, index, shards)
    run.metric("documents_in", sum(totals.values()) - totals[FILTERED])
    run.metric("documents_kept", totals[""])
    run.metric("duplicates_exact", totals[EXACT])
    run.metric("duplicates_near", totals[NEAR])
    run.metric("index_bytes", index.size_bytes())
    run.say(
        f"{totals['']:,} of {sum(totals.values()) - totals[FILTERED]:,} documents kept: "
        f"{totals[EXACT]:,} exact and {totals[NEAR]:,} near duplicates"
    )
