"""Ingest: document shards that are the same for any number of workers, errors with their places, stable increments."""

import gzip
import json
import os
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, obtain
from tasks.text.documents import DOCUMENT_SCHEMA, document_shards
from tasks.text.ingest import IngestConfig, ingest
from tasks.text.readers.parts import count_parts, read_part
from tasks.text.readers.records import Row
from tasks.text.source import resolve_source


def run(folder: Path, execution: Execution, **config: Any) -> tuple[Artifact, dict[str, float]]:
    source = resolve_source(str(folder), execution.home / "sources")
    outcome = obtain(ingest, IngestConfig(**config), {"corpus": source}, execution)
    return outcome.artifact, outcome.manifest.metrics


def rows(artifact: Artifact) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for shard in document_shards(artifact):
        found += pq.read_table(shard, schema=DOCUMENT_SCHEMA).to_pylist()
    return found


def errors(artifact: Artifact) -> list[dict[str, str]]:
    return [json.loads(line) for line in (artifact.path / "errors.jsonl").read_text().splitlines()]


def make_corpus(folder: Path, files: int = 30) -> Path:
    folder.mkdir()
    for i in range(files):
        lines = "".join(json.dumps({"id": j, "text": f"Document {i} {j} " * 30}) + "\n" for j in range(5))
        (folder / f"part-{i:03d}.jsonl").write_text(lines)
    return folder


def test_documents_have_id_origin_license_and_batch(tmp_path: Path, execution: Execution) -> None:
    folder = tmp_path / "corpus"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "a.md").write_text("  # Notes\n\nText.\n")
    record = {"text": "Own.", "license": "MIT", "batch": "2", "id": 5}
    (folder / "web.jsonl.gz").write_bytes(gzip.compress(b'{"text": "Plain."}\n' + json.dumps(record).encode()))
    artifact, metrics = run(folder, execution, license="CC0-1.0", batch="1")
    by_text = {row["text"]: row for row in rows(artifact)}
    assert by_text["# Notes\n\nText."] == {
        "doc_id": xxhash.xxh3_128_hexdigest(b"notes\0# Notes\n\nText."),
        "text": "# Notes\n\nText.",
        "source": "notes",
        "origin": "notes/a.md",
        "license": "CC0-1.0",
        "batch": "1",
    }
    own = by_text["Own."]
    assert (own["origin"], own["license"], own["batch"]) == ("web.jsonl.gz line 2", "MIT", "2")
    assert (by_text["Plain."]["license"], by_text["Plain."]["batch"]) == ("CC0-1.0", "1")
    assert metrics["documents"] == 3 and metrics["text_bytes"] == sum(len(t.encode()) for t in by_text)


def test_bytes_do_not_depend_on_workers_or_place(tmp_path: Path) -> None:
    one = make_corpus(tmp_path / "one")
    two = make_corpus(tmp_path / "two")
    first, _ = run(one, Execution(home=tmp_path / "h1", workers=1), shard_megabytes=0.01)
    second, _ = run(two, Execution(home=tmp_path / "h2", workers=2), shard_megabytes=0.01)
    assert len(document_shards(first)) > 3
    assert first.digest == second.digest


def test_a_new_file_changes_its_own_shard_only(tmp_path: Path, execution: Execution) -> None:
    folder = make_corpus(tmp_path / "corpus")
    before, _ = run(folder, execution, shard_megabytes=0.01)
    (folder / "part-014b.jsonl").write_text('{"text": "New."}\n')
    after, _ = run(folder, execution, shard_megabytes=0.01)
    old = {path.name: path.read_bytes() for path in document_shards(before)}
    new = {path.name: path.read_bytes() for path in document_shards(after)}
    assert len(old) > 3
    assert sum(new.get(name) != content for name, content in old.items()) <= 1
    assert len(rows(after)) == len(rows(before)) + 1


def test_bad_records_are_listed_with_file_and_line(tmp_path: Path, execution: Execution) -> None:
    folder = make_corpus(tmp_path / "corpus")
    with (folder / "part-007.jsonl").open("a") as stream:
        stream.write('{"text": broken\n{"content": "no text field"}\n{"text": 5}\n{"text": "  "}\n')
    (folder / "latin.txt").write_bytes("Größe".encode("latin-1"))
    (folder / "clipped.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    artifact, metrics = run(folder, execution, max_bad_share=0.2)
    found = {(e["file"], e["place"]): e["error"] for e in errors(artifact)}
    assert "not JSON" in found["part-007.jsonl", "line 6"]
    assert "no field 'text'; found: content (see ingest.text_field)" in found["part-007.jsonl", "line 7"]
    assert "expected text, found 5" in found["part-007.jsonl", "line 8"]
    assert "not UTF-8" in found["latin.txt", "byte 2"]
    assert [place for file, place in found if file == "clipped.jsonl.gz"]
    assert metrics["bad_records"] == len(found) == 5 and metrics["empty_records"] == 1
    assert len({row["text"] for row in rows(artifact)} - {"a"}) == 150


def test_too_many_bad_records_stop_the_run_and_name_the_first(tmp_path: Path, execution: Execution) -> None:
    folder = make_corpus(tmp_path / "corpus", files=1)
    with (folder / "part-000.jsonl").open("a") as stream:
        stream.write("nonsense\n")
    with pytest.raises(ValueError) as caught:
        run(folder, execution)
    message = str(caught.value)
    assert message.startswith("part-000.jsonl, line 6: not JSON")
    assert "1 of 6 records" in message and "16.7%" in message and "ingest.max_bad_share" in message
    artifact, _ = run(folder, execution, max_bad_share=0.2)
    assert len(rows(artifact)) == 5


def test_a_corpus_without_text_is_refused(tmp_path: Path, execution: Execution) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text(" \n")
    with pytest.raises(ValueError, match="1 files and no document with any text"):
        run(tmp_path / "corpus", execution)


def test_python_files_become_their_documentation(tmp_path: Path, execution: Execution) -> None:
    folder = tmp_path / "corpus"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "iron.py").write_text('def melt(ore):\n    """Melt the ore in a furnace."""\n')
    (folder / "lib" / "old.py").write_text('"""An old module."""\nprint "x"\n')
    (folder / "readme.txt").write_text("Read me.")
    artifact, _ = run(folder, execution, max_bad_share=0.5)
    found = {row["origin"]: row for row in rows(artifact)}
    assert found["lib/iron.py line 1"]["text"] == "lib.iron.melt(ore)\n\nMelt the ore in a furnace."
    assert found["lib/iron.py line 1"]["source"] == "lib"
    assert [(e["file"], e["place"]) for e in errors(artifact)] == [("lib/old.py", "line 2")]


def test_a_large_file_is_cut_into_shards_and_grows_at_its_end(tmp_path: Path, execution: Execution) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": f"Text {i} x" + "x" * (i * 37 % 300)}) + "\n" for i in range(2000)]
    lines[1500] = "broken\n"
    (folder / "a.jsonl").write_text("".join(lines))
    before, _ = run(folder, execution, shard_megabytes=0.03)
    assert len(document_shards(before)) > 5
    assert [row["text"] for row in rows(before)] == [json.loads(line)["text"] for line in lines if line != "broken\n"]
    assert [error["place"] for error in errors(before)] == ["line 1501"]
    place = int(rows(before)[1700]["origin"].removeprefix("a.jsonl byte "))
    assert (folder / "a.jsonl").read_bytes()[place:].decode().startswith(lines[1701])
    with (folder / "a.jsonl").open("a") as stream:
        stream.write('{"text": "One more."}\n')
    after, _ = run(folder, execution, shard_megabytes=0.03)
    changed = [
        p.name for p in document_shards(before) if p.read_bytes() != (after.path / "shards" / p.name).read_bytes()
    ]
    assert changed == [document_shards(before)[-1].name]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 200), st.booleans())
@settings(max_examples=100, deadline=None)
def test_parts_hold_each_line_once(lengths: list[int], part_bytes: int, ends_with_newline: bool) -> None:
    text = "\n".join(json.dumps({"text": f"{i}" + "x" * length}) for i, length in enumerate(lengths))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text(text + "\n" * ends_with_newline)
        parts = range(count_parts(path.stat().st_size, part_bytes))
        found = [item for part in parts for item in read_part(path, "a.jsonl", part, part_bytes)]
    assert [item.fields["text"] for item in found if isinstance(item, Row)] == [
        f"{i}" + "x" * length for i, length in enumerate(lengths)
    ]


def test_a_large_parquet_file_is_cut_by_row_groups(tmp_path: Path, execution: Execution) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [f"Text {i} {i * i}" for i in range(5000)]
    pq.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=300, compression="none")
    artifact, _ = run(folder, execution, shard_megabytes=0.02)
    assert len(document_shards(artifact)) > 3
    assert [row["text"] for row in rows(artifact)] == texts
    assert rows(artifact)[4321]["origin"] == "a.parquet row 4322"


def test_a_large_compressed_file_is_cut_into_shards(tmp_path: Path, execution: Execution) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = random.Random(1)
    texts = [f"Text {i} " + "".join(rng.choices("abcdefgh", k=400)) for i in range(600)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join([*lines[:300], "broken", "{}", *lines[300:]]).encode()))
    (folder / "b.txt").write_text("A small file.")
    artifact, metrics = run(folder, execution, shard_megabytes=0.02)
    shards = [path for path in document_shards(artifact) if path.name.startswith("a")]
    assert len(shards) > 8
    assert max(len("".join(pq.read_table(shard)["text"].to_pylist())) for shard in shards) < 2 * 0.02e6
    assert [row["text"] for row in rows(artifact)] == [*texts, "A small file."]
    assert [error["place"] for error in errors(artifact)] == ["line 301", "line 302"]
    assert (metrics["documents"], metrics["bad_records"]) == (601, 2)
    assert rows(artifact)[-2]["origin"] == "a.jsonl.gz line 602"


def test_a_row_group_of_long_documents_has_few(tmp_path: Path, execution: Execution) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [f"{i}" + "x" * 90_000 for i in range(10)]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(json.dumps({"text": t}) for t in texts).encode()))
    artifact, _ = run(folder, execution, shard_megabytes=0.2)
    (shard,) = document_shards(artifact)
    assert [row["text"] for row in rows(artifact)] == texts
    assert pq.ParquetFile(shard).num_row_groups == 4


def test_long_files_are_written_in_row_groups(tmp_path: Path, execution: Execution) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f'{{"text": "Text {i}"}}\n' for i in range(10_001)))
    artifact, metrics = run(folder, execution)
    (shard,) = document_shards(artifact)
    assert metrics["documents"] == 10_001 and pq.ParquetFile(shard).num_row_groups == 2


def everything(folder: Path) -> None:
    """Each format, whole and damaged, with links, odd names and files of unknown kinds."""
    (folder / "deep").mkdir(parents=True)
    table = pa.table(
        {"text": [f"parquet {i}" for i in range(40)], "far": pa.array([4 * 10**14] * 40, pa.timestamp("ms"))}
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=10, compression="none", use_dictionary=False)
    offset = pq.read_metadata(folder / "a.parquet").row_group(2).column(0).data_page_offset
    raw = bytearray((folder / "a.parquet").read_bytes())
    raw[offset : offset + 40] = bytes(40)
    (folder / "a.parquet").write_bytes(raw)
    (folder / "b.csv").write_bytes(b"text\ncsv 1\ncsv \xe9\ncsv 3\n")
    (folder / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "jsonl 1", "x": NaN}\n{"text": \n{"text": "jsonl 3"}\n')
    (folder / "d.txt").write_bytes("utf-16".encode("utf-16"))
    (folder / "e.txt").write_bytes(b"It\x92s not")
    with zipfile.ZipFile(folder / "f.zip", "w") as archive:
        for name in ("a.txt", "b.txt", "c.txt"):
            archive.writestr(name, f"zip {name}")
    whole = (folder / "f.zip").read_bytes()
    (folder / "f.zip").write_bytes(whole.replace(b"zip b.txt", b"zap b.txt"))
    (folder / "deep" / "g.bin").write_bytes(bytes(1000))
    (folder / "h").symlink_to(folder / "deep")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.md")).write_text("odd name")


def test_a_folder_of_everything(tmp_path: Path, execution: Execution) -> None:
    everything(tmp_path / "corpus")
    artifact, metrics = run(tmp_path / "corpus", execution, max_bad_share=0.9)
    assert {row["text"] for row in rows(artifact)} == {
        *(f"parquet {i}" for i in range(40) if i // 10 != 2),
        *("csv 1", "csv 3", "jsonl 1", "jsonl 3", "utf-16", "zip a.txt", "zip c.txt", "odd name"),
    }
    lost = {(e["file"], e["place"]): (e["records"], e["bytes"]) for e in map(dict[str, Any], errors(artifact))}
    assert lost.keys() == {
        ("a.parquet", "rows 21 to 30"),
        ("b.csv", "line 3"),
        ("c.jsonl", "line 2"),
        ("e.txt", "byte 2"),
        ("f.zip", "b.txt"),
    }
    assert lost["a.parquet", "rows 21 to 30"][0] == 10 and lost["a.parquet", "rows 21 to 30"][1] > 100
    assert lost["f.zip", "b.txt"] == (1, 9)
    assert metrics["bad_records"] == 14 and metrics["lost_bytes"] == sum(size for _, size in lost.values())
    assert (metrics["passed_over_files"], metrics["passed_over_bytes"]) == (2, 2000), (
        "g.bin, and again through the link"
    )
    with pytest.raises(
        ValueError, match=r"of the bytes are in files that are not read: 2 \(unknown ending .bin, 2,000"
    ):
        run(tmp_path / "corpus", execution, max_bad_share=0.9, max_passed_over_share=0.2)


def test_a_lost_file_does_not_pass_as_one_bad_record(tmp_path: Path, execution: Execution) -> None:
    folder = make_corpus(tmp_path / "corpus", files=40)
    pq.write_table(pa.table({"text": [f"{i} {i * i}" for i in range(9000)]}), folder / "z.parquet")
    (folder / "z.parquet").write_bytes((folder / "z.parquet").read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"^z.parquet: cannot be read: .*bytes cannot be read \([2-6]\d\.\d%\); allowed"
    ):
        run(folder, execution, max_bad_share=0.1)
