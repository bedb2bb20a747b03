"""With the reader added: files of its ending become documents, compressed and in archives too."""

import gzip
import zipfile
from pathlib import Path

import pyarrow.parquet as pq

from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import obtain
from tasks.text.documents import document_shards
from tasks.text.ingest import IngestConfig, ingest
from tasks.text.source import resolve_source

SRT = (
    "1\n00:00:01,000 --> 00:00:02,500\n<i>Blow</i> the\nfurnace.\n\n"
    "2\nno times\nLost.\n\n"
    "3\n0:00:03,000 --> 0:00:04,000\n{}\n"
)


def test_subtitles_become_documents(tmp_path: Path, execution: Execution) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "one.srt").write_text(SRT.format("Plain."))
    (folder / "two.srt.gz").write_bytes(gzip.compress(SRT.format("Packed.").encode()))
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("three.srt", SRT.format("Archived."))
    source = resolve_source(str(folder), tmp_path / "cache")
    outcome = obtain(ingest, IngestConfig(max_bad_share=0.5), {"corpus": source}, execution)
    texts = [text for shard in document_shards(outcome.artifact) for text in pq.read_table(shard)["text"].to_pylist()]
    assert sorted(texts) == [f"Blow the furnace.\n{last}" for last in ("Archived.", "Packed.", "Plain.")]
    assert (outcome.artifact.path / "errors.jsonl").read_text().count("subtitle 2") == 3
