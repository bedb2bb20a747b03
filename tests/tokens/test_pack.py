"""The tokenizer and pack stages: nothing lost or moved between splits, the same bytes on any number of workers."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.vocabulary.tokenizer import Tokenizer
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tasks.mechanism.store import digest_directory
from tasks.text.documents import document_shards, read_kept, write_table
from tasks.text.ingest import IngestConfig, ingest
from tasks.text.source import resolve_source
from tasks.tokens.contract import check_contract
from tasks.tokens.pack import PackConfig, pack, split_of
from tasks.tokens.tokenizer import TokenizerConfig, tokenizer
from tests.helpers import tiny


@dataclass(frozen=True)
class Prepared:
    documents: Artifact
    verdicts: Artifact
    tokenizer: Artifact

    @property
    def inputs(self) -> dict[str, Artifact]:
        names = ("filtered", "deduplicated", "decontaminated")
        return {"documents": self.documents, **dict.fromkeys(names, self.verdicts)}


def verdicts(documents: Artifact, folder: Path, every: int = 5) -> Artifact:
    """A stand-in for a filter that drops one document in `every`."""
    for shard in document_shards(documents):
        ids = pq.read_table(shard, columns=["doc_id"])["doc_id"]
        keep = [index % every != 0 for index in range(len(ids))]
        table = pa.table({"doc_id": ids, "keep": keep, "reason": ["" if k else "every" for k in keep]})
        write_table(table, folder / "attributes" / shard.name)
    return Artifact(digest_directory(folder)[0], folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    tmp = tmp_path_factory.mktemp("pack")
    execution = Execution(home=tmp / "home", workers=1)
    source = resolve_source(str(tiny.make_corpus(tmp / "library")), tmp / "cache")
    documents = build(ingest, IngestConfig(), {"corpus": source}, execution)
    dropped = verdicts(documents, tmp / "verdicts")
    inputs = {"documents": documents, "filtered": dropped, "deduplicated": dropped, "decontaminated": dropped}
    trained = build(tokenizer, TokenizerConfig(vocab_size=600), inputs, execution)
    return Prepared(documents, dropped, trained)


def packed(prepared: Prepared, home: Path, workers: int = 1, validation_share: float = 0.1) -> Artifact:
    execution = Execution(home=home, workers=workers)
    inputs = {**prepared.inputs, "tokenizer": prepared.tokenizer}
    return build(pack, PackConfig(validation_share=validation_share), inputs, execution)


def test_every_kept_document_is_in_its_split_once(prepared: Prepared, tmp_path: Path) -> None:
    tokens = packed(prepared, tmp_path)
    ours = Tokenizer.load(prepared.tokenizer.path)
    meta = json.loads((tokens.path / "meta.json").read_text())
    expected = {}
    for shard in document_shards(prepared.documents):
        kept = read_kept(shard, [prepared.verdicts.path / "attributes" / shard.name])
        expected |= dict(zip(kept["doc_id"].to_pylist(), kept["text"].to_pylist()))
    spans = pq.read_table(tokens.path / "spans.parquet").to_pylist()
    assert sorted(span["doc_id"] for span in spans) == sorted(expected)
    for split in ("train", "validation"):
        ids = np.fromfile(tokens.path / f"{split}.bin", dtype="<u2")
        mine = [span for span in spans if span["split"] == split]
        assert len(ids) == meta[f"{split}_tokens"] == sum(span["tokens"] for span in mine)
        assert meta[f"{split}_bytes"] == sum(len(expected[span["doc_id"]].encode()) for span in mine)
        position = 0
        for span in mine:
            assert span["start"] == position
            position += span["tokens"]
            own = ids[span["start"] : position]
            assert own[-1] == ours.endoftext_id and ours.endoftext_id not in own[:-1]
            assert ours.decode(own[:-1].tolist()) == expected[span["doc_id"]]
            assert span["bytes"] == len(expected[span["doc_id"]].encode())
            assert split_of(span["doc_id"], 0.1) == split
    assert (meta["vocab_size"], meta["dtype"]) == (600, "uint16")
    check_contract(prepared.tokenizer.path, tokens.path)


def test_bytes_do_not_depend_on_workers(prepared: Prepared, tmp_path: Path) -> None:
    assert packed(prepared, tmp_path / "a", 1).digest == packed(prepared, tmp_path / "b", 2).digest


def test_tokenizer_stage_is_deterministic_and_recorded(prepared: Prepared, tmp_path: Path) -> None:
    again = build(
        tokenizer, TokenizerConfig(vocab_size=600), prepared.inputs, Execution(home=tmp_path, workers=2, threads=2)
    )
    assert again.digest == prepared.tokenizer.digest
    sample = json.loads((again.path / "sample.json").read_text())
    kept = sum(
        len(read_kept(shard, [prepared.verdicts.path / "attributes" / shard.name]))
        for shard in document_shards(prepared.documents)
    )
    assert sample["documents"] == kept and sample["share"] == 1.0


def test_tokenizer_can_learn_from_a_sample(prepared: Prepared, tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=600, sample_megabytes=0.05)
    sampled = build(tokenizer, config, prepared.inputs, Execution(home=tmp_path, workers=1))
    assert 0.005 < json.loads((sampled.path / "sample.json").read_text())["share"] < 0.5
    assert sampled.digest != prepared.tokenizer.digest


def test_vocabulary_larger_than_the_text_can_fill(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size asks for 900000"):
        build(tokenizer, TokenizerConfig(vocab_size=900_000), prepared.inputs, Execution(home=tmp_path, workers=1))


def test_no_validation_document_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No document is left for validation: .*pack\.validation_share"):
        packed(prepared, tmp_path, validation_share=1e-9)


def test_nothing_kept_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    nothing = verdicts(prepared.documents, tmp_path / "nothing", every=1)
    inputs = {**prepared.inputs, "filtered": nothing}
    with pytest.raises(ValueError, match="No document is left"):
        build(tokenizer, TokenizerConfig(vocab_size=600), inputs, Execution(home=tmp_path, workers=1))
    with pytest.raises(ValueError, match="No document is left for train"):
        build(pack, PackConfig(), {**inputs, "tokenizer": prepared.tokenizer}, Execution(home=tmp_path, workers=1))


def test_split_depends_on_the_id_alone() -> None:
    ids = [f"{i:032x}" for i in range(0, 1 << 64, 1 << 58)]
    assert sum(split_of(doc_id, 0.25) == "validation" for doc_id in ids) == 16
    assert all(split_of(i, 0.25) == "validation" for i in ids if split_of(i, 0.1) == "validation")
