"""Dedup: verified witnesses, and the same verdicts however the documents arrive."""

import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given
from hypothesis import strategies as st

from model.corpus import keep_first as kernels
from model.corpus.minhash import band_keys, jaccard, shingle_hash32, signatures
from model.corpus.words import shingles
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, Outcome, obtain
from tasks.text.dedup.dedup import DedupConfig, dedup, least_agreement
from tasks.text.dedup.index import FAN_IN, DedupIndex, spans_of
from tasks.text.dedup.segment import Segment
from tasks.text.documents import attribute_shards, document_shards
from tests.helpers.data import keep_all, make_documents, words

Shards = Mapping[str, Sequence[str]]


def run(
    folder: Path, shards: Shards, cfg: DedupConfig | None = None, home: Path | None = None, workers: int = 1
) -> Outcome:
    documents = make_documents(folder / "documents", shards)
    filtered = keep_all(folder / "filtered", documents)
    return run_on(documents, filtered, cfg or DedupConfig(), home or folder / "home", workers)


def run_on(documents: Artifact, filtered: Artifact, cfg: DedupConfig, home: Path, workers: int = 1) -> Outcome:
    return obtain(dedup, cfg, {"documents": documents, "filtered": filtered}, Execution(home=home, workers=workers))


def reasons(outcome: Outcome) -> list[str]:
    return [r for shard in attribute_shards(outcome.artifact) for r in pq.read_table(shard)["reason"].to_pylist()]


def pairs(outcome: Outcome) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(outcome.artifact.path / "pairs.parquet").to_pylist()
    return found


def edited(text: str, seed: int, share: float) -> str:
    """The text with this share of its words changed."""
    rng = random.Random(seed)
    return " ".join("changed" if rng.random() < share else word for word in text.split())


def corpus(size: int, seed: int) -> list[str]:
    """Random texts, near and exact copies of earlier ones and chains of copies among them."""
    rng = random.Random(seed)
    texts: list[str] = []
    for number in range(size):
        if texts and rng.random() < 0.5:
            texts.append(edited(rng.choice(texts), number, rng.choice([0, 0, 0.01, 0.02, 0.05, 0.1])))
        else:
            texts.append(words(seed * 10_000 + number, rng.choice([3, 40, 150])))
    return texts


def reference_verdicts(texts: Sequence[str], cfg: DedupConfig) -> list[tuple[str, int, float]]:
    """Keep-first by the book: (reason, number of the witness, similarity) of each text."""
    column = pa.array(texts, pa.large_string())
    hashed = shingles(column, cfg.shingle_words)
    keys = band_keys(signatures(column, cfg.shingle_words, cfg.bands * cfg.rows, cfg.seed), cfg.bands, cfg.rows)
    buckets: dict[tuple[int, int], list[int]] = {}
    seen: dict[str, int] = {}
    verdicts: list[tuple[str, int, float]] = []
    for number, text in enumerate(texts):
        normal = " ".join(text.lower().split())
        if normal in seen:
            verdicts.append(("exact_duplicate", seen[normal], 1.0))
            continue
        mine = [(band, int(keys[band, number])) for band in range(cfg.bands)] if len(hashed[number]) else []
        candidates = sorted({other for bucket in mine for other in buckets.get(bucket, [])[: cfg.bucket_size]})
        for other in candidates:
            value = _similarity(hashed[number], hashed[other], cfg)
            if value >= cfg.threshold:
                verdicts.append(("near_duplicate", other, value))
                break
        else:
            verdicts.append(("", -1, 0.0))
            seen[normal] = number
            for bucket in mine:
                buckets.setdefault(bucket, []).append(number)
    return verdicts


def _similarity(later: np.ndarray, earlier: np.ndarray, cfg: DedupConfig) -> float:
    if cfg.similarity == "jaccard":
        return jaccard(later, earlier)
    return float(np.isin(np.unique(later), earlier).mean())


@pytest.mark.parametrize("similarity", ["jaccard", "containment"])
@pytest.mark.parametrize("bucket_size", [1, 8])
def test_verdicts_are_keep_first_by_the_book(tmp_path: Path, similarity: str, bucket_size: int) -> None:
    texts = corpus(160, seed=3)
    cfg = DedupConfig(similarity=similarity, bucket_size=bucket_size, threshold=0.7)
    outcome = run(tmp_path, {"a": texts[:70], "b": texts[70:71], "c": [], "d": texts[71:]}, cfg)
    expected = reference_verdicts(texts, cfg)
    assert {reason for reason, _, _ in expected} == {"", "exact_duplicate", "near_duplicate"}
    assert reasons(outcome) == [reason for reason, _, _ in expected]
    ids = [
        i
        for shard in document_shards(Artifact("", tmp_path / "documents"))
        for i in pq.read_table(shard)["doc_id"].to_pylist()
    ]
    dropped = [(ids[n], ids[other], value) for n, (_, other, value) in enumerate(expected) if other >= 0]
    found = [(pair["dropped"], pair["kept"], pair["similarity"]) for pair in pairs(outcome)]
    assert found == [(a, b, pytest.approx(c)) for a, b, c in dropped]


@pytest.mark.parametrize(("bands", "rows"), [(4, 1), (4, 2), (14, 8), (64, 32)])
@pytest.mark.parametrize("threshold", ["0.01", "0.75", "0.99", "1"])
def test_hardly_a_similar_pair_fails_the_sieve(bands: int, rows: int, threshold: str) -> None:
    """However few permutations there are. Low bytes agree by chance too, which lets more pairs through, not fewer."""
    places, similarity = bands * rows, Fraction(threshold)
    least = least_agreement(DedupConfig(bands=bands, rows=rows, threshold=float(threshold)))

    def missed(least: int) -> float:
        terms = (comb(places, n) * similarity**n * (1 - similarity) ** (places - n) for n in range(least))
        return float(sum(terms))

    assert missed(least) <= 3e-7, "pairs of just the threshold's similarity would be passed over"
    assert least == places or missed(least + 1) > 3e-7, "pairs would be compared that need not be"


def test_the_kept_set_is_that_of_datasketch(tmp_path: Path) -> None:
    """With one document a bucket enough and no verification asked, keep-first is what MinHashLSH.query gives."""
    texts = [words(n, 60) for n in range(30)]
    texts += [edited(texts[n % 30], n, 0.004) for n in range(30, 60)]
    column = pa.array(texts, pa.large_string())
    lsh, kept = MinHashLSH(num_perm=112, params=(14, 8)), []
    for number, row in enumerate(shingles(column, 5)[i] for i in range(len(texts))):
        sketch = MinHash(112, 1, hashfunc=lambda value: value)
        sketch.update_batch(shingle_hash32(row).tolist())
        if not lsh.query(sketch):
            lsh.insert(number, sketch)
            kept.append(number)
    outcome = run(tmp_path, {"a": texts}, DedupConfig(threshold=0.01))
    assert [n for n, reason in enumerate(reasons(outcome)) if not reason] == kept


def test_nothing_similar_nothing_dropped(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"a": [words(n, 50) for n in range(20)]})
    assert reasons(outcome) == [""] * 20 and pairs(outcome) == []


def test_exact_duplicates_ignore_case_and_blanks(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"a": ["One  two", "x"], "b": ["one\ntwo ", "", "  ", "one two!"]})
    assert reasons(outcome) == ["", "", "exact_duplicate", "", "exact_duplicate", "near_duplicate"]
    assert [pair["similarity"] for pair in pairs(outcome)] == [1.0, 1.0, 1.0]


def test_documents_without_words_are_not_near_duplicates(tmp_path: Path) -> None:
    assert reasons(run(tmp_path, {"a": ["!!!", "???", "..."]})) == ["", "", ""]


def test_an_excerpt_is_found_by_containment_only(tmp_path: Path) -> None:
    text = words(1, 200)
    shards = {"a": [text, " ".join(text.split()[:140])]}
    cfg = DedupConfig(threshold=0.95, bands=32, rows=4)
    assert reasons(run(tmp_path / "j", shards, cfg)) == ["", ""]
    contained = cfg.model_copy(update={"similarity": "containment"})
    assert reasons(run(tmp_path / "c", shards, contained)) == ["", "near_duplicate"]


def test_a_chain_of_similar_documents_is_not_swallowed(tmp_path: Path) -> None:
    """b resembles a and c resembles b, but c does not resemble a: c stays, because b is not kept."""
    base = words(5, 200).split()
    a, b, c = (" ".join(base[: 200 - n] + [f"new{i}" for i in range(n)]) for n in (0, 22, 44))
    outcome = run(tmp_path, {"a": [a, b, c]}, DedupConfig(threshold=0.75, bands=32, rows=4))
    assert reasons(outcome) == ["", "near_duplicate", ""]


def test_filtered_documents_take_no_part(tmp_path: Path) -> None:
    text = words(1, 50)
    documents = make_documents(tmp_path / "documents", {"a": [text, text, text]})
    filtered = keep_all(tmp_path / "filtered", documents)
    path = attribute_shards(filtered)[0]
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "keep", pa.array([False, True, True])), path)
    outcome = run_on(documents, filtered, DedupConfig(), tmp_path / "home")
    assert reasons(outcome) == ["filtered", "", "exact_duplicate"]
    assert outcome.manifest.metrics["documents_in"] == 2
    assert outcome.manifest.metrics["documents_kept"] == 1


@pytest.mark.parametrize("cut", [[1], [3, 7], [8, 16], [1, 2, 9, 10, 17]])
def test_increments_give_the_verdicts_of_one_run(tmp_path: Path, cut: list[int]) -> None:
    shards = {f"{n:02d}": corpus(12, seed=1) if n % 5 == 0 else corpus(12, seed=n) for n in range(18)}
    whole = run(tmp_path / "whole", shards)
    for count in [*cut, 18]:
        names = sorted(shards)[:count]
        grown = run(tmp_path / f"grown{count}", {name: shards[name] for name in names}, home=tmp_path / "home")
    assert grown.artifact.digest == whole.artifact.digest
    assert whole.manifest.metrics["duplicates_near"] > 0


def test_an_increment_judges_only_new_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {f"{n:02d}": corpus(5, seed=n) for n in range(10)}
    run(tmp_path / "first", {name: shards[name] for name in sorted(shards)[:9]}, home=tmp_path / "home")
    committed: list[int] = []
    commit = DedupIndex.commit
    monkeypatch.setattr(DedupIndex, "commit", lambda self, shard, s: (committed.append(shard), commit(self, shard, s)))
    run(tmp_path / "second", shards, home=tmp_path / "home")
    assert committed == [9]


def test_a_change_in_the_middle_judges_again_from_there(tmp_path: Path) -> None:
    shards = {f"{n:02d}": corpus(8, seed=n) for n in range(12)}
    run(tmp_path / "first", shards, home=tmp_path / "home")
    shards["10"] = corpus(8, seed=99)
    changed = run(tmp_path / "second", shards, home=tmp_path / "home")
    assert changed.artifact.digest == run(tmp_path / "fresh", shards).artifact.digest


def test_a_crash_between_shards_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {f"{n:02d}": corpus(8, seed=n) for n in range(10)}
    commit = DedupIndex.commit

    def fail_at_nine(self: DedupIndex, shard: int, segment: Segment) -> None:
        commit(self, shard, segment)
        if shard == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(DedupIndex, "commit", fail_at_nine)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", shards, home=tmp_path / "home")
    monkeypatch.setattr(DedupIndex, "commit", commit)
    resumed = run(tmp_path / "a", shards, home=tmp_path / "home")
    assert resumed.artifact.digest == run(tmp_path / "b", shards).artifact.digest


def test_a_segment_that_lost_bytes_is_judged_again(tmp_path: Path) -> None:
    """As after a power cut: the name is there, its bytes are not."""
    shards = {f"{n:02d}": corpus(8, seed=n) for n in range(10)}
    run(tmp_path / "first", {name: shards[name] for name in sorted(shards)[:9]}, home=tmp_path / "home")
    index = tmp_path / "home" / "index" / "dedup"
    for keys in index.glob("*-8/keys.npy"):
        keys.write_bytes(keys.read_bytes()[:-1])
    again = run(tmp_path / "second", shards, home=tmp_path / "home")
    assert again.artifact.digest == run(tmp_path / "fresh", shards).artifact.digest


def test_shards_and_workers_do_not_change_a_verdict(tmp_path: Path) -> None:
    texts = corpus(120, seed=8)
    one = run(tmp_path / "one", {"a": texts})
    many = run(tmp_path / "many", {f"{n:03d}": texts[n : n + 7] for n in range(0, 120, 7)}, workers=2)
    assert reasons(one) == reasons(many)
    assert [pair["similarity"] for pair in pairs(one)] == [pair["similarity"] for pair in pairs(many)]


def test_a_new_threshold_signs_nothing_again(tmp_path: Path) -> None:
    shards = {"a": corpus(20, seed=2)}
    run(tmp_path / "a", shards, home=tmp_path / "home")
    signed = list((tmp_path / "home" / "memo" / "sign_shard").iterdir())
    run(tmp_path / "a", shards, DedupConfig(threshold=0.9), home=tmp_path / "home")
    assert len(signed) == 1 and list((tmp_path / "home" / "memo" / "sign_shard").iterdir()) == signed


def test_another_threshold_has_an_index_of_its_own(tmp_path: Path) -> None:
    shards = {"a": corpus(60, seed=2)}
    loose = run(tmp_path / "a", shards, DedupConfig(threshold=0.5), home=tmp_path / "home")
    strict = run(tmp_path / "a", shards, DedupConfig(threshold=1), home=tmp_path / "home")
    assert loose.manifest.metrics["documents_kept"] < strict.manifest.metrics["documents_kept"]


@given(st.integers(0, 5000))
def test_spans_cover_all_shards_with_few_segments(shards: int) -> None:
    spans = spans_of(shards)
    assert [shard for start, end in spans for shard in range(start, end)] == list(range(shards))
    assert len(spans) <= (FAN_IN - 1) * 5
    assert all((end - start) in (1, 8, 64, 512, 4096) and start % (end - start) == 0 for start, end in spans)


def test_compiled_and_plain_keep_first_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {"a": corpus(40, seed=11), "b": corpus(40, seed=11)[::-1]}
    compiled = run(tmp_path / "compiled", shards)
    for name in ("_judge", "similarity", "agreement", "_neighbours", "_enter"):
        monkeypatch.setattr(kernels, name, getattr(kernels, name).py_func)
    plain = run(tmp_path / "plain", shards)
    assert plain.artifact.digest == compiled.artifact.digest
