"""How well dedup finds what it should: recall and precision against exact Jaccard, and labelled near-duplicates."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data_bench import Bench
from benchmarks.data_corpus import Planted, documents_artifact, plant
from benchmarks.data_pipeline import all_kept
from benchmarks.report import Figure
from model.corpus.minhash import band_keys, jaccard, signatures
from model.corpus.words import Ragged, shingles
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tasks.text.dedup.dedup import DedupConfig, dedup
from tasks.text.documents import attribute_shards


def dedup_quality(bench: Bench) -> list[Figure]:
    """Show 4: recall and precision against exact Jaccard, and the labelled near-duplicates where they are given."""
    # 1,200 characters: the text does not give so many pieces of 3,300 (benchmarks/RESULTS.md).
    planted = plant(bench.texts(8_000 * bench.size, characters=1200 if bench.size > 1 else 3300), 0.3, seed=1)
    documents = documents_artifact(planted.texts, bench.folder / "quality", shards=4)
    done = run_dedup(documents, bench.folder / "quality-home")
    dropped = {row["dropped"]: row for row in pq.read_table(done.path / "pairs.parquet").to_pylist()}
    ids = [name for shard in attribute_shards(done) for name in pq.read_table(shard)["doc_id"].to_pylist()]
    number = {name: n for n, name in enumerate(ids)}
    sets = shingles(pa.array(planted.texts, pa.large_string()), 5)
    truth = true_pairs(planted, sets)
    similar = [(a, b) for (a, b), value in truth.items() if value >= 0.8]
    found = sum(ids[a] in dropped or ids[b] in dropped for a, b in similar)
    checked = [jaccard(sets[number[row["dropped"]]], sets[number[row["kept"]]]) for row in dropped.values()]
    print(f"dedup quality on {len(ids):,} documents: {len(similar):,} pairs with J >= 0.8, {len(dropped):,} dropped")
    return [
        Figure("dedup recall at J >= 0.8", found / len(similar), 0.97),
        Figure("dedup precision at J >= 0.7", float(np.mean(np.array(checked) >= 0.7)), 0.97),
    ]


def true_pairs(planted: Planted, sets: Ragged) -> dict[tuple[int, int], float]:
    """Exact Jaccard of the planted pairs and of all that a very liberal LSH (64 bands of 4) finds."""
    # 64 bands of 4 miss (1 - 0.8^4)^64 = 2e-15 of pairs at J = 0.8; another seed than dedup's, whose misses must count.
    signature = signatures(pa.array(planted.texts, pa.large_string()), 5, 256, 99)
    pairs = set(planted.pairs)
    for keys in band_keys(signature, 64, 4):  # [documents] of each band
        order = np.argsort(keys, kind="stable")
        borders = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(order, borders):
            if 1 < len(bucket) <= 50:  # pairs grow with the square
                rows = sorted(bucket.tolist())
                pairs.update((a, b) for i, a in enumerate(rows) for b in rows[i + 1 :])
    return {(a, b): jaccard(sets[a], sets[b]) for a, b in pairs}


def labelled_pairs(bench: Bench) -> list[Figure]:
    """Show 4, second half: plagiarised news with known pairs, if the files lie beside the corpus."""
    found = expected = false = 0
    for path in sorted((Path(bench.corpus).parent / "near_duplicates").glob("*.train")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        names, texts = zip(*(line.split(" ", 1) for line in lines))
        truth = {frozenset(line.split()) for line in path.with_suffix(".truth").read_text().splitlines()}
        documents = documents_artifact(texts, bench.folder / path.stem, shards=2)
        done = run_dedup(documents, bench.folder / f"{path.stem}-home")
        ids = [name for shard in attribute_shards(done) for name in pq.read_table(shard)["doc_id"].to_pylist()]
        label = dict(zip(ids, names))
        pairs = pq.read_table(done.path / "pairs.parquet").to_pylist()
        ours = {frozenset((label[row["dropped"]], label[row["kept"]])) for row in pairs}
        found, expected, false = found + len(ours & truth), expected + len(truth), false + len(ours - truth)
    if not expected:
        print("no labelled near-duplicates beside the corpus: not measured")
        return []
    return [
        Figure("labelled near-duplicates found", found / expected, 1.0),
        Figure("labelled near-duplicates, false", false, 0, better="lower"),
    ]


def run_dedup(documents: Artifact, home: Path) -> Artifact:
    """Dedup with its defaults, on one worker."""
    everything = all_kept(documents, home / "everything")
    return build(
        dedup, DedupConfig(), {"documents": documents, "filtered": everything}, Execution(home=home, workers=1)
    )
