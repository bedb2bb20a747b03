"""Read every file of a corpus into document shards, each document with an id made of its content and with its origin.

A shard's borders depend on the names of its own files (`group_files`), so a new file changes the shard that it falls
into and no other. What cannot be read costs its record or file, is listed in `errors.jsonl` with its place, and stops
the run only past a stated share.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from tasks.mechanism.shards import ShardJob, map_shards
from tasks.mechanism.stage import StageConfig, StageRun, stage
from tasks.text.bad_records import ErrorRecord, check_bad_share, errors_metadata, lost, read_errors, write_errors
from tasks.text.documents import DOCUMENT_SCHEMA, ROW_GROUP_ROWS
from tasks.text.folders import in_words
from tasks.text.python.entries import extract_entries, is_python, read_entry_files, write_listing
from tasks.text.python.pydocs import group_documents
from tasks.text.readers import read_file
from tasks.text.readers.parts import SPLITTABLE, count_parts, read_part
from tasks.text.readers.records import Bad, HtmlExtractor, Item, Row, Text, shown
from tasks.text.source import Source, group_files, group_name, source_name

"""A shard's unreadable records travel in its Parquet metadata: a shard function writes one file."""


class DocumentRow(NamedTuple):
    """A row of DOCUMENT_SCHEMA."""

    doc_id: str
    text: str
    source: str
    origin: str
    license: str
    batch: str


class IngestConfig(StageConfig):
    """How files become documents."""

    text_field: str = Field("text", min_length=1, description="Field that holds the text in jsonl, csv and parquet.")
    html: HtmlExtractor = Field(
        "fast", description="Main content of HTML pages: fast (resiliparse) or precise (trafilatura, 10 times slower)."
    )
    license: str = Field("", description="Licence of documents whose record has no `license` field.")
    batch: str = Field("", description="Name of the delivery these documents belong to, unless their record has one.")
    shard_megabytes: float = Field(
        16.0, ge=0.01, le=4096, description="Input that a shard takes on average; 64 to 256 for large corpora."
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="Share of records or bytes that may be unreadable before the run stops."
    )
    max_passed_over_share: float = Field(
        0.9, ge=0, le=1, description="Share of bytes in files of unknown kinds before the run stops."
    )


@stage("ingest", version=1, figures=("files", "documents", "text_bytes", "bad_records"))
def ingest(run: StageRun, cfg: IngestConfig, corpus: Source) -> None:
    """Write `shards/*.parquet` and `errors.jsonl`.

    Raises:
        ValueError: too much that cannot be read or is passed over, or no document at all.
    """
    check_passed_over(run, corpus, cfg.max_passed_over_share)
    jobs = jobs_of(run, cfg, corpus)
    counts = [
        *map_shards(run, documents_of_entries, jobs.entries, cfg),
        *map_shards(run, documents_of_files, [*jobs.groups, *jobs.wholes], cfg),
        *map_shards(run, documents_of_part, jobs.parts, cfg),
    ]
    _divide(run, cfg, [job.output for job in jobs.wholes])
    outputs = [job.output for job in (*jobs.entries, *jobs.groups, *jobs.wholes, *jobs.parts)]
    errors = [error for output in outputs for error in read_errors(output)]
    documents = sum(count["documents"] for count in counts)
    check_bad_share(errors, documents, cfg.max_bad_share, "ingest.max_bad_share", corpus.size_bytes)
    if not documents:
        raise ValueError(
            f"The corpus has {len(corpus.files)} files and no document with any text in it. Check that --corpus points "
            "at the right place."
        )
    write_errors(run, errors)
    run.metric("files", len(corpus.files))
    run.metric("documents", documents)
    run.metric("text_bytes", sum(count["text_bytes"] for count in counts))
    run.metric("empty_records", sum(count["empty_records"] for count in counts))


def check_passed_over(run: StageRun, corpus: Source, most: float) -> None:
    """Say which files are not read.

    Raises:
        ValueError: they hold more than the share `most` of all bytes.
    """
    passed = sum(file.bytes for file in corpus.passed_over)
    run.metric("passed_over_files", len(corpus.passed_over))
    run.metric("passed_over_bytes", passed)
    if not corpus.passed_over:
        return
    run.say(f"files passed over: {in_words(corpus.passed_over)}; the first: {corpus.passed_over[0].name}")
    share = passed / max(passed + corpus.size_bytes, 1)
    if share > most:
        raise ValueError(
            f"{share:.1%} of the bytes are in files that are not read: {in_words(corpus.passed_over)}; allowed is "
            f"{most:.1%}. Point --corpus at the texts, or raise ingest.max_passed_over_share."
        )


@dataclass(frozen=True)
class Jobs:
    """What is read as one unit: what Python files document, groups of files, whole large files, and parts of such."""

    entries: list[ShardJob]
    groups: list[ShardJob]
    wholes: list[ShardJob]
    parts: list[ShardJob]


def jobs_of(run: StageRun, cfg: IngestConfig, corpus: Source) -> Jobs:
    """Divide the files of a corpus; all but `wholes`, which have to be divided once they are read, write a shard."""
    shards, shard_bytes = run.out / "shards", round(cfg.shard_megabytes * 1e6)
    jobs = Jobs([ShardJob((path,), shards / path.name) for path in extract_entries(run, corpus.files)], [], [], [])
    others = [file for file in corpus.files if not is_python(file)]
    for group in group_files([file for file in others if file.bytes <= 2 * shard_bytes], shard_bytes):
        inputs = (write_listing(run, group), *(file.path for file in group))
        jobs.groups.append(ShardJob(inputs, shards / f"{group_name(group)}.parquet"))
    for file in (file for file in others if file.bytes > 2 * shard_bytes):
        name, listing = group_name([file]), write_listing(run, [file])
        if not file.name.lower().endswith(SPLITTABLE):
            jobs.wholes.append(ShardJob((listing, file.path), run.scratch / "whole" / f"{name}.parquet"))
            continue
        for part in range(count_parts(file.bytes, shard_bytes)):
            inputs = (listing, _write_part(run, part), file.path)
            jobs.parts.append(ShardJob(inputs, shards / f"{name}-{part:06d}.parquet"))
    return jobs


def documents_of_entries(inputs: tuple[Path, ...], output: Path, cfg: IngestConfig) -> Mapping[str, float]:
    """Shard function: what Python files document -> documents."""
    return write_documents(_entry_items(inputs[0]), output, cfg)


def _entry_items(path: Path) -> Iterator[tuple[str, Item]]:
    for found in read_entry_files(path):
        if found.error:
            yield found.file, Bad(f"line {found.line}", found.error)
        for line, text in group_documents(found.entries):
            yield found.file, Text(f"line {line}", text)


def documents_of_files(inputs: tuple[Path, ...], output: Path, cfg: IngestConfig) -> Mapping[str, float]:
    """Shard function: files, whose names the first input lists -> documents."""
    listing, *paths = inputs
    names = json.loads(listing.read_bytes())
    files = zip(names, paths, strict=True)
    items = ((name, item) for name, path in files for item in read_file(path, name, cfg.html, _fields(cfg)))
    return write_documents(items, output, cfg)


def _fields(cfg: IngestConfig) -> tuple[str, ...]:
    """The fields that `document_of` looks at."""
    return cfg.text_field, "license", "batch"


def _divide(run: StageRun, cfg: IngestConfig, wholes: Iterable[Path]) -> None:
    """Cut the documents of large files that could only be read as a whole into shards."""
    jobs = [
        ShardJob((whole, _write_part(run, part)), run.out / "shards" / f"{whole.stem}-{part:06d}.parquet")
        for whole in wholes
        for part in range(len(_row_group_ranges(whole, cfg)))
    ]
    map_shards(run, documents_of_row_groups, jobs, cfg)


def _row_group_ranges(whole: Path, cfg: IngestConfig) -> list[range]:
    """Consecutive row groups that make up a shard each."""
    metadata = pq.read_metadata(whole)
    ranges, start, size = [], 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= cfg.shard_megabytes * 1e6 or group == metadata.num_row_groups - 1:
            ranges.append(range(start, group + 1))
            start, size = group + 1, 0
    return ranges


def documents_of_row_groups(inputs: tuple[Path, ...], output: Path, cfg: IngestConfig) -> Mapping[str, float]:
    """Shard function: (documents of a large file, number of the part) -> the documents of that part."""
    whole, part = inputs
    groups = _row_group_ranges(whole, cfg)[int(part.read_text())]
    with (
        pq.ParquetFile(whole) as file,
        pq.ParquetWriter(output, DOCUMENT_SCHEMA, compression="zstd", write_statistics=False) as writer,
    ):
        for group in groups:
            writer.write_table(file.read_row_group(group))
    return {}


def _write_part(run: StageRun, part: int) -> Path:
    path = run.scratch / "parts" / f"{part:06d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(part))
    return path


def documents_of_part(inputs: tuple[Path, ...], output: Path, cfg: IngestConfig) -> Mapping[str, float]:
    """Shard function: (listing with one name, number of the part, file) -> the documents of that part of the file."""
    listing, part, path = inputs
    (name,) = json.loads(listing.read_bytes())
    items = read_part(path, name, int(part.read_text()), round(cfg.shard_megabytes * 1e6), _fields(cfg))
    return write_documents(((name, item) for item in items), output, cfg)


def write_documents(items: Iterable[tuple[str, Item]], output: Path, cfg: IngestConfig) -> Mapping[str, float]:
    """Write one shard, a row group at a time, so that memory does not grow with the file.

    A row group ends at ROW_GROUP_ROWS documents, or as many characters as a shard has bytes on average.
    """
    errors: list[ErrorRecord] = []
    counts = {"documents": 0.0, "text_bytes": 0.0, "empty_records": 0.0}
    rows: list[DocumentRow] = []
    characters = 0
    with pq.ParquetWriter(output, DOCUMENT_SCHEMA, compression="zstd", write_statistics=False) as writer:
        for name, item in items:
            document = document_of(name, item, cfg)
            if isinstance(document, Bad):
                errors.append(lost(name, document))
            elif not document.text:
                counts["empty_records"] += 1
            else:
                rows.append(document)
                characters += len(document.text)
            if len(rows) == ROW_GROUP_ROWS or characters > cfg.shard_megabytes * 1e6:
                _write_rows(writer, rows, counts)
                rows, characters = [], 0
        _write_rows(writer, rows, counts)
        writer.add_key_value_metadata(errors_metadata(errors))
    return counts


def _write_rows(writer: pq.ParquetWriter, rows: list[DocumentRow], counts: dict[str, float]) -> None:
    columns = zip(*rows) if rows else [()] * len(DOCUMENT_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, DOCUMENT_SCHEMA)]
    table = pa.table(arrays, schema=DOCUMENT_SCHEMA)
    counts["documents"] += len(rows)
    counts["text_bytes"] += pc.sum(pc.binary_length(table["text"])).as_py() or 0
    writer.write_table(table)


def document_of(name: str, item: Item, cfg: IngestConfig) -> DocumentRow | Bad:
    """The document row of a record from the file `name`; Bad if it has no text field."""
    if isinstance(item, Bad):
        return item
    license, batch, origin = cfg.license, cfg.batch, f"{name} {item.place}".strip()
    if isinstance(item, Row):
        text = item.fields.get(cfg.text_field)
        if not isinstance(text, str):
            return Bad(item.place, _no_text(item, cfg.text_field))
        license = _text_or(item.fields.get("license"), license)
        batch = _text_or(item.fields.get("batch"), batch)
    else:
        text = item.text
        origin = f"{item.address} ({origin})" if item.address else origin
    text = text.strip()
    source = source_name(name)
    # Not of the place: text that moves within its source keeps its id, and with it its split and its verdicts.
    try:
        doc_id = xxhash.xxh3_128_hexdigest(f"{source}\0{text}".encode())
    except UnicodeEncodeError:  # half of a surrogate pair, e.g. in the documentation of a codec
        return Bad(item.place, "holds half of a surrogate pair, which is no text")
    return DocumentRow(doc_id, text, source, origin, license, batch)


def _text_or(value: object, default: str) -> str:
    return value if isinstance(value, str) and value else default


def _no_text(row: Row, field: str) -> str:
    if field in row.fields:
        return f"field {field!r}: expected text, found {shown(row.fields[field])}"
    return f"no field {field!r}; found: {', '.join(map(str, row.fields)) or 'none'} (see ingest.text_field)"
