"""The overlap of held-out documents with the training tokens, kept with the tokens and read beside later scores."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.tokens.files import read_tokens, sample_documents

OVERLAP_FILE = "overlap.parquet"
SAMPLE_TOKENS = 1_000_000
"""Held-out documents are measured up to this many tokens in all, in the order in which evaluations draw them."""
DOCUMENT_TOKENS = 1 << 16
_SCHEMA = pa.schema([("doc_id", pa.string()), ("tokens", pa.int64()), ("overlapping", pa.int64())])


def write_overlap(folder: Path) -> float:
    """Write, for each held-out document of a token folder, how many of its tokens stand in the training text too.

    Returns the share over all documents, 0 to 1.
    """
    from model.corpus.overlap import covered_tokens, run_hashes, seen_runs

    documents = list(sample_documents(folder, "validation", SAMPLE_TOKENS, DOCUMENT_TOKENS))
    hashes = [run_hashes(document.ids.astype(np.uint32)) for document in documents]
    wanted = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    seen = seen_runs(wanted, read_tokens(folder, "train"))
    lengths = [len(document.ids) for document in documents]
    covered = [covered_tokens(mine, wanted, seen, length) for mine, length in zip(hashes, lengths)]
    columns = [[document.doc_id for document in documents], lengths, covered]
    pq.write_table(pa.table(columns, schema=_SCHEMA), folder / OVERLAP_FILE, compression="zstd")
    return sum(covered) / max(sum(lengths), 1)


def read_overlap(folder: Path) -> dict[str, float]:
    """Share of overlapping tokens by document id."""
    table = pq.read_table(folder / OVERLAP_FILE)
    shares = table["overlapping"].to_numpy() / np.maximum(table["tokens"].to_numpy(), 1)
    return dict(zip(table["doc_id"].to_pylist(), shares.tolist()))
