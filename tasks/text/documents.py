"""The layout of documents and of what stages say about them: text once, attributes beside it, row by row."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.mechanism.store import Artifact

DOCUMENT_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("origin", pa.string()),
        ("license", pa.string()),
        ("batch", pa.string()),
    ]
)
ROW_GROUP_ROWS = 10_000


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet the one way we do, so that equal tables are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP_ROWS, write_statistics=False)


def document_shards(documents: Artifact) -> list[Path]:
    """The document shards in canonical order."""
    return sorted((documents.path / "shards").glob("*.parquet"))


def attribute_shards(attributes: Artifact) -> list[Path]:
    """The attribute shards in the order of the document shards they belong to."""
    return sorted((attributes.path / "attributes").glob("*.parquet"))


def aligned_shards(documents: Artifact, *attributes: Artifact) -> list[tuple[Path, ...]]:
    """(document shard, its attribute shards...) for each shard, checked to belong together."""
    rows = [tuple(paths) for paths in zip(document_shards(documents), *map(attribute_shards, attributes), strict=True)]
    assert all(len({path.name for path in row}) == 1 for row in rows), "attributes of other documents"
    return rows


def read_kept(document_shard: Path, attributes: Sequence[Path]) -> pa.Table:
    """The rows of a document shard that every attribute shard keeps, with redactions applied to their text."""
    table = pq.read_table(document_shard, schema=DOCUMENT_SCHEMA)
    for path in attributes:
        table = _apply_redactions(table, path)
    return table.filter(kept_rows(document_shard, attributes))


def kept_rows(document_shard: Path, attributes: Sequence[Path]) -> pa.ChunkedArray:
    """One boolean per row of a document shard: whether every attribute shard keeps it."""
    rows = pq.read_metadata(document_shard).num_rows
    keep = pa.chunked_array([pa.array([True] * rows, pa.bool_())])
    for path in attributes:
        verdict = pq.read_table(path, columns=["keep"])["keep"]
        assert len(verdict) == rows, f"{path} has {len(verdict)} rows, its documents {rows}"
        keep = pc.and_(keep, verdict)
    return keep


def _apply_redactions(table: pa.Table, attributes: Path) -> pa.Table:
    """Replace the byte spans that a stage marked as personal data by their kind, e.g. `[EMAIL]`."""
    if "redactions" not in pq.read_schema(attributes).names:
        return table
    spans = pq.read_table(attributes, columns=["redactions"])["redactions"].to_pylist()
    if not any(spans):
        return table
    texts = [redact(text, found) if found else text for text, found in zip(table["text"].to_pylist(), spans)]
    column = table.schema.get_field_index("text")
    return table.set_column(column, "text", pa.array(texts, pa.large_string()))


def redact(text: str, spans: Sequence[dict[str, object]]) -> str:
    """`text` with each {start, end, kind} span (UTF-8 byte offsets, ascending, disjoint) replaced by `[KIND]`."""
    raw = text.encode()
    parts: list[bytes] = []
    position = 0
    for span in spans:
        start, end = span["start"], span["end"]
        assert isinstance(start, int) and isinstance(end, int) and position <= start <= end <= len(raw)
        parts += [raw[position:start], f"[{span['kind']}]".upper().encode()]
        position = end
    parts.append(raw[position:])
    return b"".join(parts).decode()


def iterate_kept(documents: Artifact, *attributes: Artifact) -> Iterator[pa.Table]:
    """The kept rows of each shard, shard by shard, in canonical order."""
    for document_shard, *attribute_paths in aligned_shards(documents, *attributes):
        yield read_kept(document_shard, attribute_paths)
