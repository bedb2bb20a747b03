"""Small corpora as artifacts, for the tests of the data stages."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import xxhash

from tasks.mechanism.stage import Artifact
from tasks.mechanism.store import digest_directory
from tasks.text.documents import DOCUMENT_SCHEMA, write_table

PROSE = (
    "The filter reads a document and measures what it can be judged by. It counts the words of the text, the lines "
    "that end in a full stop, and the phrases that come again and again.\nA rule compares one of these numbers with a "
    "bound that people can change. Whoever changes it sees at once which documents go and which come back, with the "
    "reason for each of them written beside it.\n"
)

NUMPY_STYLE = """Solve a linear system. It uses LU.

There is more on it in [1]_ than here.

Parameters
----------
a, b : (n, n) array_like
    Coefficient matrices.
overwrite : bool, optional
    Whether to overwrite ``a``. Default is False.

    Another paragraph of it.
*args
    The rest.

Returns
-------
x : ndarray
    The solution.

Raises
------
LinAlgError
    If `a` is singular.

Examples
--------
>>> solve(a, b)
"""


def make_documents(folder: Path, shards: Mapping[str, Sequence[str]]) -> Artifact:
    """A documents artifact with these texts, by shard name."""
    for name, texts in shards.items():
        rows = [
            {
                "doc_id": xxhash.xxh3_128_hexdigest(f"test\0{name}\0{position}\0{text}".encode()),
                "text": text,
                "source": "test",
                "origin": f"{name}:{position}",
                "license": "",
                "batch": "",
            }
            for position, text in enumerate(texts)
        ]
        write_table(pa.Table.from_pylist(rows, DOCUMENT_SCHEMA), folder / "shards" / f"{name}.parquet")
    return Artifact(digest_directory(folder)[0], folder)


def keep_all(folder: Path, documents: Artifact) -> Artifact:
    """Attributes that keep every document."""
    import pyarrow.parquet as pq

    for shard in sorted((documents.path / "shards").glob("*.parquet")):
        ids = pq.read_table(shard, columns=["doc_id"])["doc_id"]
        schema = pa.schema([("doc_id", pa.string()), ("keep", pa.bool_()), ("reason", pa.string())])
        table = pa.table([ids, [True] * len(ids), [""] * len(ids)], schema=schema)
        write_table(table, folder / "attributes" / shard.name)
    return Artifact(digest_directory(folder)[0], folder)


def words(seed: int, count: int) -> str:
    """A text of `count` pseudo-random words, the same for the same seed."""
    digits = hashlib.shake_256(str(seed).encode()).hexdigest(count * 2)
    return " ".join(f"w{digits[4 * i : 4 * i + 4]}" for i in range(count))
