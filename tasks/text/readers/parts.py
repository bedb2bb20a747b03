"""Parts of one large file, so that no shard and no memory grows with it: JSON Lines by bytes, Parquet by row groups.

Parts have a fixed size in bytes, so a file that grows changes its last part only. A compressed file cannot be entered
in the middle: ingest reads it once from its start, and cuts the documents found.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.text.readers.records import Bad, Item
from tasks.text.readers.rows import json_line
from tasks.text.readers.tables import table_rows

SPLITTABLE = (".jsonl", ".ndjson", ".parquet")
_SCAN_BYTES = 1 << 20


def count_parts(size_bytes: int, part_bytes: int) -> int:
    """How many parts a file of this size has."""
    return max(1, -(-size_bytes // part_bytes))


def read_part(path: Path, name: str, part: int, part_bytes: int) -> Iterator[Item]:
    """The records of part number `part`, from 0: those that begin in its range of bytes."""
    start, end = part * part_bytes, (part + 1) * part_bytes
    with path.open("rb") as stream:
        if name.lower().endswith(".parquet"):
            yield from _row_groups(stream, start, end)
        else:
            yield from _lines(stream, start, end)


def _lines(stream: BinaryIO, start: int, end: int) -> Iterator[Item]:
    """A line belongs to the part that it begins in. Its place is its byte; that of a bad one, its line."""
    # One byte earlier: a line that begins just at `start` is then not taken for the rest of one.
    stream.seek(max(0, start - 1))
    if start > 0:
        stream.readline()  # the rest of the line that begins before `start`, or just the end of it
    while (position := stream.tell()) < end and (line := stream.readline()):
        if not line.strip():
            continue
        item = json_line(line, f"byte {position}")
        yield replace(item, place=f"line {_line_number(stream, position)}") if isinstance(item, Bad) else item


def _line_number(stream: BinaryIO, position: int) -> int:
    """The number, from 1, of the line at `position`; reads all before it, so it is asked for bad lines only."""
    after = stream.tell()
    stream.seek(0)
    count, left = 1, position
    while left:
        chunk = stream.read(min(left, _SCAN_BYTES))
        count += chunk.count(b"\n")
        left -= len(chunk)
    stream.seek(after)
    return count


def _row_groups(stream: BinaryIO, start: int, end: int) -> Iterator[Item]:
    """The rows of the row groups that begin in the range; a damaged file is reported by its first part."""
    try:
        file = pq.ParquetFile(stream)
        row = 0
        for index in range(file.num_row_groups):
            group = file.metadata.row_group(index)
            column = group.column(0)
            # A dictionary page stands before the data that it is for.
            begin = column.dictionary_page_offset or column.data_page_offset
            if start <= begin < end:
                yield from table_rows(file.iter_batches(row_groups=[index]), row)
            row += group.num_rows
    except (pa.ArrowException, OSError) as error:
        if start == 0:
            yield Bad("", f"cannot be read: {type(error).__name__}: {error}")
