"""Web archives (WARC and WARC.gz): the main content of every page, and the texts of WET files."""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from tasks.text.readers.html import main_content, page_encoding
from tasks.text.readers.http import decoded_body
from tasks.text.readers.records import MAX_BYTES, Bad, Item, Text, Wanted, guarded, rest_lost
from tasks.text.readers.text import known_encoding, marked_encoding

_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_CONTENT_TYPE = re.compile(rb"^content-type:[ \t]*([^;\r\n]*)(?:;[^\r\n]*?charset=[\"']?([\w-]+))?", re.I | re.M)
_STATUS = re.compile(rb"HTTP/[\d.]+ +(\d+)")


def read_warc(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """A document for each HTML response and each plain text; other records (images, requests) are passed over, and so
    are pages that the server gave with an error or a redirection.

    HTTP headers are split off here, not by FastWARC, which takes a page for headers where a crawler wrote bare line
    feeds (ClueWeb09).
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    kinds = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
    for record in ArchiveIterator(stream, record_types=kinds, parse_http=False):
        size = record.content_length
        yield from guarded(_record(record, wanted), rest_lost(lambda nothing, size=size: size))  # type: ignore[misc]


def _record(record: Any, wanted: Wanted) -> Iterator[Item]:
    place = f"byte {record.stream_pos}"
    body: bytes = record.reader.read(min(record.content_length, MAX_BYTES))
    if len(body) < record.content_length:
        yield Bad(
            place,
            f"clipped: the record promises {record.content_length} bytes, {len(body)} are there",
            bytes=record.content_length,
        )
        return
    address = record.headers.get("WARC-Target-URI", "")
    kind = (record.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    charset = "utf-8"
    if kind == "application/http":
        head, body = split_http(body)
        status = _STATUS.match(head)
        if status and not 200 <= int(status[1]) < 300:
            return
        match = _CONTENT_TYPE.search(head)
        kind = match[1].decode("latin-1").strip().lower() if match else ""
        charset = match[2].decode("ascii", "replace") if match and match[2] else ""
        if kind != "text/plain" and kind not in _PAGE_TYPES:
            return
        try:
            body = decoded_body(head, body)
        except ValueError as error:
            yield Bad(place, str(error), bytes=record.content_length)
            return
    if kind == "text/plain":
        yield Text(place, _plain(body, charset), address)
    elif kind in _PAGE_TYPES:
        yield Text(place, main_content(body, wanted.html, charset if charset != "utf-8" else ""), address)


def _plain(body: bytes, charset: str) -> str:
    encoding = marked_encoding(body) or known_encoding(charset)
    if not encoding:
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError:
            encoding = page_encoding(body, "")
    return body.decode(encoding, "replace").removeprefix("\ufeff")


def split_http(message: bytes) -> tuple[bytes, bytes]:
    """(headers, body) of an HTTP message, whichever line ends it uses."""
    end = _HEADER_END.search(message)
    return (message[: end.start()], message[end.end() :]) if end else (message, b"")
