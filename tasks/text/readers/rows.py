"""Records with named fields in text files: JSON Lines, JSON, CSV, TSV."""

import csv
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import orjson

from tasks.text.readers.records import MAX_BYTES, Bad, Item, Row, Wanted, printable, read_whole, shown

# Python's default refuses fields of more than 131,072 characters: a text may well be longer.
MAX_FIELD_CHARACTERS = MAX_BYTES
_MARK = b"\xef\xbb\xbf"
_UNDECODED = re.compile("[\udc80-\udcff]")
_HALF = re.compile("[\ud800-\udfff]")
_BETWEEN = re.compile(r"[\s,]*")


def read_jsonl(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """A record for each line that is not blank."""
    is_rest = False
    number = 1
    for line in iter(partial(stream.readline, MAX_BYTES), b""):
        is_cut = not line.endswith(b"\n") and len(line) == MAX_BYTES
        if is_cut and not is_rest:
            yield Bad(f"line {number}", f"a line of more than {MAX_BYTES} bytes; at most so many are read")
        elif not is_rest and line.strip():
            yield json_line(line, f"line {number}", wanted)
        is_rest = is_cut
        number += not is_cut


def json_line(line: bytes, place: str, wanted: Wanted) -> Row | Bad:
    """The record in one line of JSON."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _lenient_line(line, place, wanted, error)
    return _row(value, place)


def _lenient_line(line: bytes, place: str, wanted: Wanted, error: Exception) -> Row | Bad:
    try:
        value = json.loads(_decoded(line), parse_int=_integer)
    except (ValueError, RecursionError):
        return Bad(place, f"not JSON ({error}): {shown(line.decode(errors='replace').rstrip())}")
    return _mended_row(value, place, wanted)


def _decoded(raw: bytes) -> str:
    """Text whose bytes that are no UTF-8 stand as single surrogates, so that they cost their field alone."""
    return raw.removeprefix(_MARK).decode("utf-8", "surrogateescape")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 1000 else float(digits)  # Python refuses to convert from 4,300 digits on


def _mended_row(value: Any, place: str, wanted: Wanted) -> Row | Bad:
    """Python's JSON knows NaN, numbers of any size and halves of surrogate pairs, which become U+FFFD."""
    if isinstance(value, dict):
        for field, inner in value.items():
            if wanted.asks(field) and any(_UNDECODED.search(text) for text in _texts(inner)):
                return Bad(place, f"field {field!r}: not UTF-8")
    return _row(_mended(value), place)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, list):
        return [_mended(inner) for inner in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(inner) for key, inner in value.items()}
    return value


def _row(value: Any, place: str) -> Row | Bad:
    if isinstance(value, dict):
        return Row(place, value)
    return Bad(place, f"expected an object with named fields, found {shown(value)}")


def read_json(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """A list of objects, one object, or JSON Lines under the wrong ending; of a damaged list, what stands before."""
    raw = read_whole(stream)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        yield from _lenient_json(raw, wanted, error)
        return
    if isinstance(value, list):
        yield from (_row(entry, f"record {number}") for number, entry in enumerate(value, start=1))
    else:
        yield _row(value, "")


def _lenient_json(raw: bytes, wanted: Wanted, error: orjson.JSONDecodeError) -> Iterator[Item]:
    text = _decoded(raw)
    decoder = json.JSONDecoder(parse_int=_integer)
    is_list = text.lstrip().startswith("[")
    position = _BETWEEN.match(text, text.index("[") + 1 if is_list else 0).end()  # type: ignore[union-attr]
    number = 0
    while position < len(text) and not (is_list and text[position] == "]"):
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            if not is_list and number == 0 and b"\n" in raw.strip():
                yield from read_jsonl(io.BytesIO(raw), wanted)
                return
            lost = len(text[position:].encode("utf-8", "surrogateescape"))
            yield Bad(f"after record {number}" if number else f"line {error.lineno}", f"not JSON ({error})", bytes=lost)
            return
        number += 1
        position = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]
        if not is_list and number == 1 and position < len(text):
            yield from read_jsonl(io.BytesIO(raw), wanted)
            return
        yield _mended_row(value, f"record {number}" if is_list else "", wanted)


def read_csv(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """A record for each row; the first names the fields."""
    yield from _delimited(stream, ",", wanted)


def read_tsv(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """The same with tabs."""
    yield from _delimited(stream, "\t", wanted)


def _delimited(stream: BinaryIO, delimiter: str, wanted: Wanted) -> Iterator[Item]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(_lines(text), delimiter=delimiter)
    names: list[str] | None = None
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Bad(f"line {reader.line_num}", f"cannot be read: {error}")
            continue
        if names is None:
            names = [printable(name) for name in values]
        elif values:
            yield _csv_row(names, values, f"line {reader.line_num}", wanted)


def _csv_row(names: list[str], values: list[str], place: str, wanted: Wanted) -> Row | Bad:
    if len(values) != len(names):
        return Bad(place, f"expected {len(names)} fields as in the first line, found {len(values)}")
    joined = "".join(values)
    if not joined.isascii() and _UNDECODED.search(joined):
        for name, value in zip(names, values):
            if wanted.asks(name) and _UNDECODED.search(value):
                return Bad(place, f"field {name!r}: not UTF-8 in {shown(value.encode('utf-8', 'surrogateescape'))}")
        values = [_HALF.sub("\ufffd", value) for value in values]
    return Row(place, dict(zip(names, values)))


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """The lines of the text.

    Raises:
        ValueError: one is longer than a line may be.
    """
    for line in iter(partial(text.readline, MAX_FIELD_CHARACTERS), ""):
        if len(line) == MAX_FIELD_CHARACTERS:
            raise ValueError(f"a line of {MAX_FIELD_CHARACTERS} characters; at most so many are read")
        yield line
