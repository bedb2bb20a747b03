"""Read the token files that `pack` wrote: rows and documents, which source each token is from, and what overlaps."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

if TYPE_CHECKING:
    from model.training.data import TokenSources

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
MAX_SOURCES = 16
OTHER_SOURCES = "other"
OVERLAP_FILE = "overlap.parquet"
OVERLAP_TOKENS = 1_000_000
"""Held-out documents are measured up to this many tokens in all, in the order in which evaluations draw them."""
OVERLAP_DOCUMENT_TOKENS = 1 << 16
_OVERLAP_SCHEMA = pa.schema([("doc_id", pa.string()), ("tokens", pa.int64()), ("overlapping", pa.int64())])


@dataclass(frozen=True)
class TokenDocument:
    """A document of a split. ids: (tokens,), without the separator; bytes: of its whole text."""

    doc_id: str
    source: str
    ids: NDArray[np.int64]
    bytes: int


def read_meta(folder: Path) -> dict[str, Any]:
    """What `pack` says of a token folder: size of the vocabulary, type of the ids, tokens and bytes of each split."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
    return meta


def read_tokens(folder: Path, split: Split) -> NDArray[np.unsignedinteger]:
    """All tokens of a split, (tokens,), as a memory map.

    Raises:
        ValueError: the split has none.
    """
    path = folder / f"{split}.bin"
    if path.stat().st_size == 0:
        raise ValueError(f"The {split} split has no tokens. Give more text, or a larger share to that split (pack).")
    # Mapped: a step reads its windows, and no process holds the corpus.
    return np.memmap(path, np.dtype(read_meta(folder)["dtype"]).newbyteorder("<"), "r")


def random_rows(folder: Path, split: Split, rows: int, length: int, seed: int) -> NDArray[np.int64]:
    """Rows that start anywhere in the split, distinct while it lasts: (rows or fewer, length).

    Raises:
        ValueError: the split is shorter than one row.
    """
    tokens = read_tokens(folder, split)
    count = len(tokens) // length
    if count < 1:
        raise ValueError(f"{folder / split}.bin has {len(tokens)} tokens, less than one row of {length}.")
    chosen = np.random.Generator(np.random.Philox(seed)).permutation(count)[:rows]
    # In the order of the file: the map is read from front to back.
    return np.stack([tokens[i * length : (i + 1) * length] for i in np.sort(chosen)]).astype(np.int64)


def sample_documents(folder: Path, split: Split, max_tokens: int, max_document_tokens: int) -> Iterator[TokenDocument]:
    """Documents until `max_tokens` are reached, at most `max_document_tokens` of each.

    In the order of their ids, which are hashes: a sample that has nothing to do with what they are about, and mostly
    the same documents when the corpus grows.
    """
    tokens = read_tokens(folder, split)
    # A row group holds one split, so the spans of the other, fifty times as many, are not read.
    spans = pq.read_table(folder / "spans.parquet", filters=[("split", "=", split)]).sort_by("doc_id")
    total = 0
    for row in (row for batch in spans.to_batches(max_chunksize=1024) for row in batch.to_pylist()):
        length = min(row["tokens"] - 1, max_document_tokens)  # the last is the separator
        if length < 1:
            continue
        ids = tokens[row["start"] : row["start"] + length].astype(np.int64)
        yield TokenDocument(row["doc_id"], row["source"], ids, row["bytes"])
        total += length
        if total >= max_tokens:
            return


def report_names(sizes: Mapping[str, int]) -> dict[str, str]:
    """The name under which figures of each source appear: its own for the largest, `other` for those that would make
    more than MAX_SOURCES.

    A corpus may have thousands of sources; a curve for each would help nobody.
    """
    # By name where equal, so that the same sources are told in every run.
    ranked = sorted(sizes, key=lambda source: (-sizes[source], source))
    kept = MAX_SOURCES if len(ranked) <= MAX_SOURCES else MAX_SOURCES - 1
    return {source: source if rank < kept else OTHER_SOURCES for rank, source in enumerate(ranked)}


def token_sources(folder: Path, split: Split) -> "TokenSources":
    """The sources of a split's tokens by the names of `report_names`; a separator is its document's."""
    from model.training.data import TokenSources  # imports torch, which `pack` can do without

    columns = ["source", "start", "tokens"]
    spans = pq.read_table(folder / "spans.parquet", columns=columns, filters=[("split", "=", split)]).sort_by("start")
    sizes = spans.group_by("source").aggregate([("tokens", "sum")])
    reported = report_names(dict(zip(sizes["source"].to_pylist(), sizes["tokens_sum"].to_pylist())))
    names = tuple(sorted(set(reported.values())))
    numbers = {source: names.index(name) for source, name in reported.items()}
    owners = np.array([numbers[source] for source in spans["source"].to_pylist()], dtype=np.int64)
    return TokenSources(names, np.cumsum(spans["tokens"].to_numpy()), owners)


def write_overlap(folder: Path) -> float:
    """Write, for each held-out document of a token folder, how many of its tokens stand in the training text too.

    Returns the share over all documents, 0 to 1.
    """
    from model.corpus.overlap import covered_tokens, run_hashes, seen_runs

    documents = list(sample_documents(folder, "validation", OVERLAP_TOKENS, OVERLAP_DOCUMENT_TOKENS))
    hashes = [run_hashes(document.ids.astype(np.uint32)) for document in documents]
    wanted = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    seen = seen_runs(wanted, read_tokens(folder, "train"))
    lengths = [len(document.ids) for document in documents]
    covered = [covered_tokens(mine, wanted, seen, length) for mine, length in zip(hashes, lengths)]
    columns = [[document.doc_id for document in documents], lengths, covered]
    pq.write_table(pa.table(columns, schema=_OVERLAP_SCHEMA), folder / OVERLAP_FILE, compression="zstd")
    return sum(covered) / max(sum(lengths), 1)


def read_overlap(folder: Path) -> dict[str, float]:
    """Share of overlapping tokens by document id."""
    table = pq.read_table(folder / OVERLAP_FILE)
    shares = table["overlapping"].to_numpy() / np.maximum(table["tokens"].to_numpy(), 1)
    return dict(zip(table["doc_id"].to_pylist(), shares.tolist()))
