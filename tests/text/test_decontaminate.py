"""Decontamination: what shares a long run of words with a validation item goes, and each overlap is written down."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.corpus import ngrams as kernels
from model.corpus.words import shingles, words_of
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, Input, Outcome, obtain
from tasks.text.decontaminate import DecontaminateConfig, decontaminate, ngrams_of
from tasks.text.documents import attribute_shards, write_table
from tasks.text.source import resolve_source
from tests.helpers.data import keep_all, make_documents, words

LEAK = words(1, 20)
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def validation(folder: Path, chats: Sequence[str], pairs: Sequence[tuple[str, str, str]] = ()) -> dict[str, Artifact]:
    """Conversations and preferences artifacts with these validation items."""

    def column(texts: Sequence[str]) -> pa.Array:
        return pa.array([[{"role": "user", "content": text}] for text in texts], MESSAGES)

    names = pa.array([f"c{n}" for n in range(len(chats))], pa.string())
    write_table(pa.table({"conversation_id": names, "messages": column(chats)}), folder / "c" / "validation.parquet")
    names = pa.array([f"p{n}" for n in range(len(pairs))], pa.string())
    parts = {part: column([pair[i] for pair in pairs]) for i, part in enumerate(("prompt", "chosen", "rejected"))}
    write_table(pa.table({"preference_id": names, **parts}), folder / "p" / "validation.parquet")
    return {"conversations": Artifact("c", folder / "c"), "preferences": Artifact("p", folder / "p")}


def run(
    folder: Path,
    shards: dict[str, list[str]],
    benchmarks: Mapping[str, Input],
    cfg: DecontaminateConfig | None = None,
    workers: int = 1,
) -> Outcome:
    documents = make_documents(folder / "documents", shards)
    everything = keep_all(folder / "kept", documents)
    inputs = {"documents": documents, "filtered": everything, "deduplicated": everything, **benchmarks}
    return obtain(decontaminate, cfg or DecontaminateConfig(), inputs, Execution(home=folder / "home", workers=workers))


def reasons(outcome: Outcome) -> list[str]:
    return [r for shard in attribute_shards(outcome.artifact) for r in pq.read_table(shard)["reason"].to_pylist()]


def test_leaks_are_dropped_and_reported(tmp_path: Path) -> None:
    first, second = " ".join(LEAK.split()[:13]), words(2, 13)
    benchmarks = validation(tmp_path, ["short", f"Q: {LEAK}"], [("ask", "good", f"bad {second}!")])
    shards = {"a": [words(5, 60), f"see {first.upper()}, so"], "b": [f"x {LEAK} and {second}", words(6, 60)]}
    outcome = run(tmp_path, shards, benchmarks)
    assert reasons(outcome) == ["", "contaminated", "contaminated", ""]
    overlaps = pq.read_table(outcome.artifact.path / "overlaps.parquet").to_pylist()
    found = [(row["benchmark"], row["item"], row["ngrams"]) for row in overlaps]
    assert found == [("conversations", "c1", 1), ("conversations", "c1", 8), ("preferences", "p0", 1)]
    assert [overlaps[0]["words"], overlaps[2]["words"]] == [first, second]
    assert overlaps[1]["words"] in LEAK
    metrics = outcome.manifest.metrics
    assert (metrics["documents_in"], metrics["documents_kept"], metrics["documents_contaminated"]) == (4, 2, 2)
    assert (metrics["benchmark_items"], metrics["benchmark_items_overlapping"]) == (3, 2)


def test_benchmark_files_are_protected_whatever_their_fields_are(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    questions = [{"ask": LEAK, "options": ["no", words(2, 13)]}, {"ask": words(3, 30), "options": []}]
    (tmp_path / "tests" / "quiz.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "tests" / "story.txt").write_text(words(4, 40))
    shards = {"a": [f"see {LEAK}", f"x {words(2, 13)}", words(5, 60)], "b": [words(4, 40)]}
    given: dict[str, Input] = {"benchmarks": resolve_source(str(tmp_path / "tests"), tmp_path / "cache")}
    outcome = run(tmp_path, shards, validation(tmp_path, ["short"]) | given)
    assert reasons(outcome) == ["contaminated", "contaminated", "", "contaminated"]
    metrics = outcome.manifest.metrics
    assert (metrics["items/quiz"], metrics["items_overlapping/quiz"]) == (2, 1)
    assert (metrics["items/story"], metrics["items_overlapping/story"]) == (1, 1)
    assert metrics["items_overlapping/conversations"] == 0
    named = [name for name in metrics if name.startswith("items/")]
    assert named == ["items/conversations", "items/quiz", "items/story"]


def test_a_benchmark_that_cannot_be_read_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "quiz.jsonl").write_text('{"ask": "a"}\nnonsense\n')
    given: dict[str, Input] = {"benchmarks": resolve_source(str(tmp_path / "quiz.jsonl"), tmp_path / "cache")}
    with pytest.raises(ValueError, match=r"benchmark quiz.jsonl line 2 cannot be read"):
        run(tmp_path, {"a": [LEAK]}, validation(tmp_path, ["short"]) | given)


def test_one_word_less_is_no_leak(tmp_path: Path) -> None:
    benchmarks = validation(tmp_path, [LEAK])
    texts = [" ".join(LEAK.split()[:n]) + " otherwise different" for n in (12, 13)]
    assert reasons(run(tmp_path, {"a": texts}, benchmarks)) == ["", "contaminated"]
    wider = DecontaminateConfig(ngram_words=12)
    assert reasons(run(tmp_path, {"a": texts}, benchmarks, wider)) == ["contaminated", "contaminated"]


def test_a_run_across_two_messages_is_no_leak(tmp_path: Path) -> None:
    benchmarks = validation(tmp_path, [" ".join(LEAK.split()[:10]), " ".join(LEAK.split()[10:])])
    assert reasons(run(tmp_path, {"a": [LEAK]}, benchmarks)) == [""]


def test_a_common_phrase_is_no_leak(tmp_path: Path) -> None:
    benchmarks = validation(tmp_path, [LEAK])
    texts = [f"{words(n + 10, 5)} {LEAK}" for n in range(4)]
    common = DecontaminateConfig(max_documents_per_ngram=3)
    assert set(reasons(run(tmp_path, {"a": texts[:2], "b": texts[2:]}, benchmarks, common))) == {""}
    rare = DecontaminateConfig(max_documents_per_ngram=4)
    assert set(reasons(run(tmp_path, {"a": texts[:2], "b": texts[2:]}, benchmarks, rare))) == {"contaminated"}


def test_documents_dropped_before_take_no_part(tmp_path: Path) -> None:
    benchmarks = validation(tmp_path, [LEAK])
    documents = make_documents(tmp_path / "documents", {"a": [LEAK, LEAK + " again"]})
    kept = keep_all(tmp_path / "kept", documents)
    path = attribute_shards(kept)[0]
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "keep", pa.array([False, True])), path)
    inputs = {"documents": documents, "filtered": kept, "deduplicated": kept, **benchmarks}
    outcome = obtain(
        decontaminate, DecontaminateConfig(max_documents_per_ngram=1), inputs, Execution(home=tmp_path / "h")
    )
    assert reasons(outcome) == ["removed_before", "contaminated"]
    assert outcome.manifest.metrics["documents_in"] == 1


@pytest.mark.parametrize("chats", [[], ["too short to tell"]])
def test_nothing_to_compare_with_drops_nothing(tmp_path: Path, chats: list[str]) -> None:
    outcome = run(tmp_path, {"a": [LEAK], "b": []}, validation(tmp_path, chats))
    assert reasons(outcome) == [""]
    assert pq.read_table(outcome.artifact.path / "overlaps.parquet").num_rows == 0


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    shards = {name: [words(n, 50) + " " + LEAK for n in range(3)] for name in "ab"}
    digests = set()
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        digests.add(run(folder, shards, validation(folder, [LEAK]), workers=workers).artifact.digest)
    assert len(digests) == 1


WORDS = st.lists(st.sampled_from(["a", "b", "c", "自", "É", "d!"]), max_size=30).map(" ".join)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=3), st.lists(WORDS, min_size=1, max_size=4), st.integers(2, 5))
def test_matches_are_the_shared_ngrams(benchmark: list[str], texts: list[str], n: int) -> None:
    sources, column = pa.array(benchmark, pa.large_string()), pa.array(texts, pa.large_string())
    ngrams = ngrams_of(sources, n)
    found = kernels.matches(column, sources, ngrams.hashes, ngrams.text_of, n)

    def all_ngrams(text: str) -> set[str]:
        tokens = words_of(text)
        return {" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}

    wanted = set().union(*map(all_ngrams, benchmark))
    expected = [(row, ngram) for row, text in enumerate(texts) for ngram in sorted(all_ngrams(text) & wanted)]
    assert sorted(zip(found.rows.tolist(), found.words)) == expected
    assert len(ngrams.hashes) == len(wanted)
    compiled = kernels._hash_matches(column, ngrams.hashes, n)
    plain = kernels._hash_matches_plain(column, ngrams.hashes, n) if len(ngrams.hashes) else compiled
    assert [part.tolist() for part in compiled] == [part.tolist() for part in plain]


def test_a_collision_of_hashes_is_no_leak() -> None:
    sources, texts = (pa.array([text], pa.large_string()) for text in (words(1, 5), words(2, 5)))
    forged = shingles(texts, 5).values  # the document's own hash, claimed for the benchmark
    found = kernels.matches(texts, sources, forged, np.zeros(1, np.int64), 5)
    assert found.words == []
