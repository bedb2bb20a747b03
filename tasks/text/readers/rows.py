"""Records with named fields in text files: JSON Lines, JSON, CSV, TSV."""

import csv
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from tasks.text.readers.records import Bad, HtmlExtractor, Item, Row, shown

# Python's default refuses fields of more than 131,072 characters: a text may well be longer.
MAX_FIELD_CHARACTERS = 1 << 30


def read_jsonl(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
    """A record for each line that is not blank."""
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield json_line(line, f"line {number}")


def json_line(line: bytes, place: str) -> Row | Bad:
    """The record in one line of JSON."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Bad(place, f"not JSON ({error}): {shown(line.decode(errors='replace').rstrip())}")
    return _row(value, place)


def _row(value: Any, place: str) -> Row | Bad:
    if isinstance(value, dict):
        return Row(place, value)
    return Bad(place, f"expected an object with named fields, found {shown(value)}")


def read_json(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
    """A list of objects, one object, or JSON Lines under the wrong ending."""
    raw = stream.read()
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if raw.lstrip().startswith(b"{") and raw.count(b"\n") > 0:
            yield from read_jsonl(io.BytesIO(raw), extractor)
        else:
            yield Bad(f"line {error.lineno}", f"not JSON ({error})")
        return
    if isinstance(value, list):
        yield from (_row(entry, f"record {number}") for number, entry in enumerate(value, start=1))
    else:
        yield _row(value, "")


def read_csv(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
    """A record for each row; the first names the fields."""
    yield from _delimited(stream, ",")


def read_tsv(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
    """The same with tabs."""
    yield from _delimited(stream, "\t")


def _delimited(stream: BinaryIO, delimiter: str) -> Iterator[Item]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    # newline="", or line ends inside quoted fields would be changed.
    reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), delimiter=delimiter)
    for fields in reader:
        place = f"line {reader.line_num}"
        if None in fields or None in fields.values():
            yield Bad(
                place, f"expected {len(reader.fieldnames or ())} fields as in the first line, found another count"
            )
        else:
            yield Row(place, fields)
