"""Read the token files that `pack` wrote: random rows for calibration, whole documents for scoring."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class TokenDocument:
    """A document of a split. ids: (tokens,), without the separator; bytes: of its whole text."""

    doc_id: str
    source: str
    ids: NDArray[np.int64]
    bytes: int


def read_tokens(folder: Path, split: Split) -> NDArray[np.unsignedinteger]:
    """All tokens of a split, (tokens,), as a memory map."""
    dtype = json.loads((folder / "meta.json").read_bytes())["dtype"]
    return np.memmap(folder / f"{split}.bin", np.dtype(dtype).newbyteorder("<"), "r")


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
