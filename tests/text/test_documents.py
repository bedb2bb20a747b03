"""Documents and any number of judgements on them: all must keep a document, in whatever order they are given."""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import graph
from flows.show.summary import FIGURES
from tasks.chats.conversations import CONVERSATION_SCHEMA
from tasks.chats.preferences import PREFERENCE_SCHEMA
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, Stage, build, obtain
from tasks.mechanism.store import digest_directory
from tasks.text.decontaminate import DecontaminateConfig, decontaminate
from tasks.text.dedup.dedup import DedupConfig, dedup
from tasks.text.documents import aligned_shards, attribute_shards, document_shards, is_judgement, read_kept, write_table
from tasks.text.filter import FilterConfig, filter
from tasks.text.measure import REDACTIONS
from tasks.tokens.pack import PackConfig, pack
from tasks.tokens.tokenizer import TokenizerConfig, tokenizer
from tests.helpers.data import keep_all, make_documents, words

LETTERS = str.maketrans("0123456789", "ghijklmnop")  # a digit is a token by itself: nothing for a vocabulary to merge
TEXTS = [f"{words(n, 40)} mail ann@site.org".translate(LETTERS) for n in range(60)]


def takedown(
    folder: Path, documents: Artifact, dropped: Sequence[int], spans: Sequence[tuple[int, int, str]]
) -> Artifact:
    """What a judge that nobody has written yet would say: rows to drop, and spans to redact in all others."""
    for shard in document_shards(documents):
        ids = pq.read_table(shard, columns=["doc_id"])["doc_id"]
        keep = [row not in dropped for row in range(len(ids))]
        found = [{"start": start, "end": end, "kind": kind} for start, end, kind in spans]
        columns = {
            "doc_id": ids,
            "keep": pa.array(keep, pa.bool_()),
            "reason": pa.array(["" if kept else "taken_down" for kept in keep], pa.string()),
            "redactions": pa.array([found] * len(ids), REDACTIONS),
        }
        write_table(pa.table(columns), folder / "attributes" / shard.name)
    return Artifact(digest_directory(folder)[0], folder)


def reasons(artifact: Artifact) -> list[str]:
    return [r for shard in attribute_shards(artifact) for r in pq.read_table(shard)["reason"].to_pylist()]


def test_redactions_of_several_judges_are_cut_once_whatever_their_order(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": ["0123456789abcdef", "0123456789ABCDEF"]})
    said = [((0, 2, "ip"), (8, 12, "email")), ((10, 14, "phone"),), ((1, 2, "key"), (15, 16, "card"))]
    judged = [takedown(tmp_path / str(n), documents, [], spans) for n, spans in enumerate(said)]
    for order in permutations(judged):
        ((shard, *attributes),) = aligned_shards(documents, *order)
        assert read_kept(shard, attributes)["text"].to_pylist() == [
            "[IP]234567[EMAIL]e[CARD]",
            "[IP]234567[EMAIL]E[CARD]",
        ]


def test_a_new_judge_needs_no_place_in_the_stages_after_it(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": [*TEXTS, TEXTS[7], TEXTS[8]]})
    execution = Execution(home=tmp_path / "home", workers=1)
    judged = {"takedown": takedown(tmp_path / "takedown", documents, [7], [(0, 5, "name")])}
    loose = FilterConfig(languages=(), max_mean_word_length=100, max_digit_share=1, min_stop_words=0)
    judged["filter"] = build(filter, loose, {"documents": documents}, execution)
    assert not any(reasons(judged["filter"]))
    unique = obtain(dedup, DedupConfig(), {"documents": documents, **judged}, execution)
    judged["dedup"] = unique.artifact
    assert unique.manifest.metrics["documents_in"] == 61, "the document that was taken down took part"
    assert reasons(unique.artifact)[-2:] == ["", "exact_duplicate"], "a copy was dropped for one that is not kept"
    examples = _no_examples(tmp_path)
    judged["decontaminate"] = build(
        decontaminate, DecontaminateConfig(), {"documents": documents, **judged, **examples}, execution
    )
    assert reasons(judged["decontaminate"]).count("removed_before") == 2
    corpus = {"documents": documents, **judged}
    vocabulary = build(tokenizer, TokenizerConfig(vocab_size=600), corpus, execution)
    digests = set()
    for number, order in enumerate((list(judged), list(judged)[::-1])):
        inputs = {"documents": documents, "tokenizer": vocabulary, **{name: judged[name] for name in order}}
        elsewhere = Execution(home=tmp_path / f"home{number}", workers=1)
        packed = obtain(pack, PackConfig(validation_share=0.2), inputs, elsewhere)
        digests.add(packed.artifact.digest)
        metrics = packed.manifest.metrics
        assert metrics["train_documents"] + metrics["validation_documents"] == 60
    assert len(digests) == 1, "the bytes depend on an order that the key does not know"


def _no_examples(folder: Path) -> dict[str, Artifact]:
    """Conversations and preferences without a validation split to protect."""
    for name, schema in (("conversations", CONVERSATION_SCHEMA), ("preferences", PREFERENCE_SCHEMA)):
        write_table(schema.empty_table(), folder / name / "validation.parquet")
    return {name: Artifact(name, folder / name) for name in ("conversations", "preferences")}


def test_an_artifact_says_whether_it_is_a_judgement(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": ["x"]})
    assert is_judgement(keep_all(tmp_path / "kept", documents)) and not is_judgement(documents)


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_every_stage_names_its_telling_figures(name: str) -> None:
    stages = {stage.name: stage for stage in vars(graph).values() if isinstance(stage, Stage)}
    assert FIGURES[name] == stages[name].figures
    assert FIGURES[name] or name == "gate", "the summary has nothing to say of it"
