"""Web archives (WARC and WARC.gz): the main content of every page, and the texts of WET files."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from tasks.readers.html import main_content
from tasks.readers.records import Bad, HtmlExtractor, Item, Text

_PAGE_TYPES = ("text/html", "application/xhtml+xml")


def read_warc(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
    """A document for each HTML response and each plain text; other records (images, requests) are passed over."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    wanted = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
    for record in ArchiveIterator(stream, record_types=wanted):
        yield from _record(record, extractor)


def _record(record: Any, extractor: HtmlExtractor) -> Iterator[Item]:
    place = f"byte {record.stream_pos}"
    address = record.headers.get("WARC-Target-URI", "")
    kind = (record.http_content_type or record.headers.get("Content-Type", "")).split(";")[0].strip().lower()
    body = record.reader.read()
    if kind == "text/plain" and not record.is_http:
        yield Text(place, body.decode("utf-8", "replace"), address)
    elif kind in _PAGE_TYPES:
        text = main_content(body, extractor, record.http_charset or "")
        yield Text(place, text, address) if text else Bad(place, "the page has no main content")
