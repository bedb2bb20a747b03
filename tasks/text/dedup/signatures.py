"""What dedup knows of a document: the hash of its text, its MinHash signature, and the shingles both are checked on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from tasks.mechanism.shards import Counts
from tasks.mechanism.stage import StageConfig
from tasks.text.documents import kept_rows

if TYPE_CHECKING:
    from model.corpus.words import Ragged


class SignConfig(StageConfig):
    """The sketch: FineWeb's 14 bands of 8 permutations over word 5-grams, and datasketch's permutations."""

    # 5-grams, 14 x 8: a pair of J = 0.8 shares a band with probability 0.92, one of 0.9 with 0.9996 (docs/filters.md).
    shingle_words: int = Field(5, ge=1, le=20, description="Words per shingle (word n-grams).")
    bands: int = Field(14, ge=1, le=64, description="LSH bands; more of them find pairs of lower similarity.")
    rows: int = Field(8, ge=1, le=32, description="Permutations per LSH band; more of them demand higher similarity.")
    # 1 is the default of datasketch: signatures can be exchanged with it as they are.
    seed: int = Field(1, ge=0, description="Seed of the MinHash permutations, as in datasketch.")


def sign_shard(inputs: tuple[Path, ...], output: Path, cfg: SignConfig) -> Counts:
    """Write row, id, text hash, signature and shingles of each document of a shard that is left so far.

    Inputs: the document shard, and its attribute shards so far.

    As one uncompressed Arrow batch, so that the shingles of single documents can later be read through a memory map.
    """
    from model.corpus.exact import text_hashes
    from model.corpus.minhash import shingle_sets, sign
    from model.corpus.words import as_texts

    keep = kept_rows(inputs[0], inputs[1:])
    table = pq.read_table(inputs[0], columns=["doc_id", "text"]).filter(keep)
    texts = as_texts(table["text"])
    sets = shingle_sets(texts, cfg.shingle_words)
    columns = {
        "row": pa.array(np.flatnonzero(keep.to_numpy()).astype(np.int32)),
        "doc_id": _one_array(table["doc_id"]),
        "text_hash": _fixed_binary(text_hashes(texts)),
        "signature": _fixed_binary(sign(sets, cfg.bands * cfg.rows, cfg.seed)),
        "shingles": pa.LargeListArray.from_arrays(pa.array(sets.offsets), pa.array(sets.values)),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    # 4 bytes a shingle, 1.8 KB for a document of 3.3 KB: the largest thing that dedup keeps (docs/scale.md).
    with pa.ipc.new_file(output, batch.schema) as writer:
        writer.write_batch(batch)
    return {"documents": float(len(table))}


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _fixed_binary(rows: NDArray[Any]) -> pa.FixedSizeBinaryArray:
    data = np.ascontiguousarray(rows)
    width = data.shape[1] * data.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(data), [None, pa.py_buffer(data)])


def _rows_of(array: pa.FixedSizeBinaryArray, dtype: Any) -> NDArray[Any]:
    """The matrix that `_fixed_binary` stored."""
    width = array.type.byte_width // np.dtype(dtype).itemsize
    # No bytes at all come as None; the buffer may be padded beyond the rows.
    return np.frombuffer(array.buffers()[1] or b"", dtype)[: len(array) * width].reshape(-1, width)


@dataclass(frozen=True)
class Signed:
    """What `sign_shard` wrote: the documents of a shard that are to be judged.

    rows: (documents,) in the document shard
    text_hash: (documents, 2)
    signature: (documents, permutations)
    sets: the sorted distinct shingle hashes of each
    """

    rows: NDArray[np.int32]
    doc_ids: pa.Array
    text_hash: NDArray[np.uint64]
    signature: NDArray[np.uint32]
    sets: "Ragged"


def read_signed(path: Path) -> Signed:
    """Map a file of `sign_shard` into memory; what is not looked at is not read."""
    from model.corpus.words import Ragged

    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    shingles = batch["shingles"]
    return Signed(
        batch["row"].to_numpy(),
        batch["doc_id"],
        _rows_of(batch["text_hash"], np.uint64),
        _rows_of(batch["signature"], np.uint32),
        Ragged(shingles.values.to_numpy(), shingles.offsets.to_numpy()),
    )
