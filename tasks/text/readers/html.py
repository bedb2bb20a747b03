"""HTML pages: the main content, without menus and footers.

`fast` is resiliparse, 500-680 pages/s a core; `precise` is trafilatura, 51-76 pages/s. F1 on 181 pages of all kinds
(scrapinghub's benchmark): .916 and .962; on 44 pages that are articles (Mozilla's readability): .960 and .923, where
trafilatura loses short ones.
"""

from collections.abc import Iterator
from typing import BinaryIO

from tasks.text.readers.records import HtmlExtractor, Item, Text


def read_html(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
    """The main content of the page in the stream; "" where the page has none."""
    yield Text("", main_content(stream.read(), extractor))


def main_content(page: bytes, extractor: HtmlExtractor, encoding: str = "") -> str:
    """The main content as text, paragraphs apart by a line; "" if there is none. `encoding` "" means: detect it."""
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    markup = bytes_to_str(page, encoding or detect_encoding(page, from_html_meta=True) or "utf-8")
    if extractor == "fast":
        from resiliparse.extract.html2text import extract_plain_text

        text = str(extract_plain_text(markup, main_content=True, alt_texts=False))
    else:
        import trafilatura

        text = trafilatura.extract(markup, fast=True) or ""
    return text.replace("\u00a0", " ").strip()
