"""Columnar files: Parquet, and Arrow as the `datasets` library saves it."""

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.text.readers.records import HtmlExtractor, Item, Row

BATCH_ROWS = 1000


def read_parquet(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
    """A record for each row."""
    yield from table_rows(pq.ParquetFile(stream).iter_batches(batch_size=BATCH_ROWS))


def read_arrow(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
    """A record for each row of an Arrow file or stream."""
    is_file_format = stream.read(6) == b"ARROW1"
    stream.seek(0)
    if is_file_format:
        reader = pa.ipc.open_file(stream)
        yield from table_rows(reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        yield from table_rows(pa.ipc.open_stream(stream))


def table_rows(batches: Iterable[pa.RecordBatch], before: int = 0) -> Iterator[Item]:
    """A record for each row; `before` rows of the file precede them."""
    number = before
    for batch in batches:
        for fields in batch.to_pylist():
            number += 1
            yield Row(f"row {number}", fields)
