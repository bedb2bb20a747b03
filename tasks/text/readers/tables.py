"""Columnar files: Parquet, and Arrow as the `datasets` library saves it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.text.readers.records import Bad, Item, Row, Wanted, guarded, printable

BATCH_ROWS = 1000


@dataclass(frozen=True)
class Unreadable:
    """A value that Python cannot hold, and why."""

    error: str


def read_parquet(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """A record for each row; damage costs the rest of its row group."""
    file = pq.ParquetFile(stream)
    row = 0
    for index in range(file.num_row_groups):
        yield from row_group(file, index, row, wanted)
        row += file.metadata.row_group(index).num_rows


def row_group(file: pq.ParquetFile, index: int, before: int, wanted: Wanted) -> Iterator[Item]:
    """The rows of one row group; `before` rows of the file precede it. Columns nobody asked for are not read."""
    group = file.metadata.row_group(index)
    names = file.schema_arrow.names
    asked = [name for name in names if wanted.asks(name)]
    if not asked:
        yield from _named_only(names, before, group.num_rows)
        return
    size = sum(group.column(column).total_compressed_size for column in range(group.num_columns))

    def lost(reason: str, last: str) -> Bad:
        done = int(last.removeprefix("row ")) - before if last else 0
        left = group.num_rows - done
        return Bad(f"rows {before + done + 1} to {before + group.num_rows}", reason, left, _part(size, left, group))

    batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=[index], columns=asked)
    yield from guarded(table_rows(batches, wanted, before), lost)


def _part(size: int, left: int, group: pq.RowGroupMetaData) -> int:
    return size * left // max(int(group.num_rows), 1)


def read_arrow(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """A record for each row of an Arrow file or stream; damage costs a batch of a file, and the rest of a stream."""
    is_file_format = stream.read(6) == b"ARROW1"
    size = stream.seek(0, 2)
    stream.seek(0)
    if not is_file_format:
        yield from table_rows(iter(pa.ipc.open_stream(stream)), wanted, 0)
        return
    reader = pa.ipc.open_file(stream)
    row = 0
    for index in range(reader.num_record_batches):
        for item in guarded(_batch_rows(reader, index, wanted, row), _batch_lost(index, reader, size)):
            row += item.records if isinstance(item, Bad) else 1
            yield item


def _batch_rows(reader: Any, index: int, wanted: Wanted, before: int) -> Iterator[Item]:
    yield from table_rows(iter([reader.get_batch(index)]), wanted, before)


def _batch_lost(index: int, reader: Any, size: int) -> Callable[[str, str], Bad]:
    share = size // reader.num_record_batches
    return lambda reason, last: Bad(f"batch {index + 1}", reason, bytes=share)


def table_rows(batches: Iterator[pa.RecordBatch], wanted: Wanted, before: int) -> Iterator[Item]:
    """A record for each row, only what is asked for converted; `before` rows of the file precede them."""
    for batch in batches:
        names = [name for name in batch.schema.names if wanted.asks(name)]
        if names:
            chosen = [(name, _values(batch.column(i))) for i, name in enumerate(batch.schema.names) if name in names]
            yield from _rows([name for name, _ in chosen], [values for _, values in chosen], before)
        else:
            yield from _named_only(batch.schema.names, before, batch.num_rows)
        before += batch.num_rows


def _rows(names: Sequence[str], columns: Sequence[Sequence[Any]], before: int) -> Iterator[Item]:
    damaged = any(isinstance(value, Unreadable) for values in columns for value in values)
    for number, row in enumerate(zip(*columns), start=before + 1):
        if damaged:
            bad = next((f"field {n!r}: {v.error}" for n, v in zip(names, row) if isinstance(v, Unreadable)), "")
            if bad:
                yield Bad(f"row {number}", bad)
                continue
        yield Row(f"row {number}", dict(zip(names, row)))


def _named_only(names: Sequence[str], before: int, count: int) -> Iterator[Item]:
    """Rows of which no field is asked for: their names tell what is there instead."""
    fields = dict.fromkeys(names)
    yield from (Row(f"row {number}", fields) for number in range(before + 1, before + count + 1))


def _values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except Exception:  # one value is enough for it: a date beyond year 9999, bytes that are no UTF-8
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:
        reason = f"{type(error).__name__}: {printable(str(error))}"
    try:
        return scalar.cast(pa.string()).as_py()  # as it would be printed
    except Exception:
        return Unreadable(reason)
