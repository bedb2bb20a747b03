"""The layout of documents and of what stages say about them: text once, attributes beside it, row by row."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.mechanism.store import Artifact

DOCUMENT_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        # 64-bit offsets: with 32 bits a column ends at 2 GB of text.
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("origin", pa.string()),
        ("license", pa.string()),
        ("batch", pa.string()),
    ]
)
ROW_GROUP_ROWS = 10_000  # 33 MB of documents of 3.3 KB: what a writer or reader holds at a time


class Span(TypedDict):
    """A part of a text in UTF-8 bytes, and what kind of personal data it is: a row of the column `redactions`."""

    start: int
    end: int
    kind: str


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet the one way we do, so that equal tables are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Other levels and no dictionaries are within 10 % of this, which is 5 % of the pipeline (docs/LOG.md).
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP_ROWS, write_statistics=False)


def document_shards(documents: Artifact) -> list[Path]:
    """The document shards in canonical order."""
    return sorted((documents.path / "shards").glob("*.parquet"))  # a folder lists its files in no order


def attribute_shards(attributes: Artifact) -> list[Path]:
    """The attribute shards in the order of the document shards they belong to."""
    return sorted((attributes.path / "attributes").glob("*.parquet"))


def is_judgement(artifact: Artifact) -> bool:
    """Whether the artifact says of documents which are kept and why others are not."""
    return (artifact.path / "attributes").is_dir()


def aligned_shards(documents: Artifact, *judged: Artifact) -> list[tuple[Path, ...]]:
    """(document shard, its attribute shards...) for each shard, checked to belong together."""
    rows = [tuple(paths) for paths in zip(document_shards(documents), *map(attribute_shards, judged), strict=True)]
    assert all(len({path.name for path in row}) == 1 for row in rows), "attributes of other documents"
    return rows


def kept_rows(document_shard: Path, attributes: Sequence[Path]) -> pa.ChunkedArray:
    """One boolean per row of a document shard: whether every attribute shard keeps it."""
    # From the footer: the text is not read for the number of its rows.
    rows = pq.read_metadata(document_shard).num_rows
    keep = pa.chunked_array([pa.array([True] * rows, pa.bool_())])
    for path in attributes:
        verdict = pq.read_table(path, columns=["keep"])["keep"]
        assert len(verdict) == rows, f"{path} has {len(verdict)} rows, its documents {rows}"
        keep = pc.and_(keep, verdict)
    return keep


def read_kept(document_shard: Path, attributes: Sequence[Path]) -> pa.Table:
    """The rows of a document shard that every attribute shard keeps, with redactions applied to their text.

    A pure function of the set of attribute shards: the key of a stage call does not know their order.
    """
    keep = kept_rows(document_shard, attributes)
    table = pq.read_table(document_shard, schema=DOCUMENT_SCHEMA).filter(keep)
    # A shard without any keeps its texts in Arrow: none of them becomes a Python string.
    columns = [spans for path in attributes if (spans := _redactions(path, keep))]
    if not columns:
        return table
    found = [_disjoint([span for spans in row for span in spans]) for row in zip(*columns, strict=True)]
    texts = [redact(text, spans) if spans else text for text, spans in zip(table["text"].to_pylist(), found)]
    column = table.schema.get_field_index("text")
    return table.set_column(column, "text", pa.array(texts, pa.large_string()))


def _redactions(attributes: Path, keep: pa.ChunkedArray) -> list[list[Span]]:
    """The byte spans that a judge marked as personal data in each kept row; [] where it marked none in any."""
    if "redactions" not in pq.read_schema(attributes).names:
        return []
    spans: list[list[Span]] = pq.read_table(attributes, columns=["redactions"])["redactions"].filter(keep).to_pylist()
    return spans if any(spans) else []


def _disjoint(spans: Sequence[Span]) -> list[Span]:
    """Ascending; of spans that overlap, because two judges found them, one over both with the kind of the first."""
    found: list[Span] = []
    # The longest first of those that begin together, then by kind: no order of judges changes the text.
    for span in sorted(spans, key=lambda span: (span["start"], -span["end"], span["kind"])):
        if found and span["start"] < found[-1]["end"]:
            found[-1] = {**found[-1], "end": max(found[-1]["end"], span["end"])}
        else:
            found.append(span)
    return found


def redact(text: str, spans: Sequence[Span]) -> str:
    """`text` with each span, ascending and disjoint, replaced by `[KIND]`, e.g. `[EMAIL]`."""
    # In bytes, as spans are: a character may be several.
    raw = text.encode()
    parts: list[bytes] = []
    position = 0
    for span in spans:
        assert position <= span["start"] <= span["end"] <= len(raw)
        parts += [raw[position : span["start"]], f"[{span['kind']}]".upper().encode()]
        position = span["end"]
    parts.append(raw[position:])
    return b"".join(parts).decode()
