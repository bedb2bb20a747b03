"""Web archives (WARC and WARC.gz): the main content of every page, and the texts of WET files."""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from tasks.text.readers.html import main_content
from tasks.text.readers.records import Bad, HtmlExtractor, Item, Text

_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_CONTENT_TYPE = re.compile(rb"^content-type:[ \t]*([^;\r\n]*)(?:;[^\r\n]*?charset=[\"']?([\w-]+))?", re.I | re.M)


def read_warc(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
    """A document for each HTML response and each plain text; other records (images, requests) are passed over.

    HTTP headers are split off here, not by FastWARC, which takes a page for headers where a crawler wrote bare line
    feeds (ClueWeb09).
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    wanted = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
    for record in ArchiveIterator(stream, record_types=wanted, parse_http=False):
        yield from _record(record, extractor)


def _record(record: Any, extractor: HtmlExtractor) -> Iterator[Item]:
    place = f"byte {record.stream_pos}"
    body: bytes = record.reader.read()
    if len(body) < record.content_length:
        yield Bad(place, f"clipped: the record promises {record.content_length} bytes, {len(body)} are there")
        return
    address = record.headers.get("WARC-Target-URI", "")
    kind = (record.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    charset = ""
    if kind == "application/http":
        head, body = split_http(body)
        match = _CONTENT_TYPE.search(head)
        kind = match[1].decode("latin-1").strip().lower() if match else ""
        charset = match[2].decode("ascii") if match and match[2] else ""
    if kind == "text/plain":
        yield Text(place, body.decode("utf-8", "replace"), address)
    elif kind in _PAGE_TYPES:
        yield Text(place, main_content(body, extractor, charset), address)


def split_http(message: bytes) -> tuple[bytes, bytes]:
    """(headers, body) of an HTTP message, whichever line ends it uses."""
    end = _HEADER_END.search(message)
    return (message[: end.start()], message[end.end() :]) if end else (message, b"")
