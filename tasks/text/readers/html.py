"""HTML pages: the main content, without menus and footers.

`fast` is resiliparse, 500-680 pages/s a core; `precise` is trafilatura, 51-76 pages/s. F1 on 181 pages of all kinds
(scrapinghub's benchmark): .916 and .962; on 44 pages that are articles (Mozilla's readability): .960 and .923, where
trafilatura loses short ones.
"""

from collections.abc import Iterator
from typing import BinaryIO

from tasks.text.readers.records import HtmlExtractor, Item, Text, Wanted, read_whole
from tasks.text.readers.text import known_encoding, marked_encoding

_STATES_ITSELF_BYTES = 1024
"""Where <meta charset> has to stand, by the HTML standard."""


def read_html(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """The main content of the page in the stream; "" where the page has none."""
    yield Text("", main_content(read_whole(stream), wanted.html))


def main_content(page: bytes, extractor: HtmlExtractor, encoding: str = "") -> str:
    """The main content as text, paragraphs apart by a line; "" if there is none. `encoding` is what the server said,
    "" if nothing."""
    from resiliparse.parse.encoding import bytes_to_str

    markup = bytes_to_str(page, page_encoding(page, encoding)).removeprefix("\ufeff")
    if extractor == "fast":
        from resiliparse.extract.html2text import extract_plain_text

        text = str(extract_plain_text(markup, main_content=True, alt_texts=False))
    else:
        import trafilatura

        text = trafilatura.extract(markup, fast=True) or ""
    return text.replace("\u00a0", " ").strip()


def page_encoding(page: bytes, said: str) -> str:
    """The encoding of a page by the HTML standard: its byte order mark, the server's word, <meta>, the bytes.

    A <meta> that could be read says nothing of UTF-16, so there it means UTF-8; and a name no codec has means nothing.
    """
    from resiliparse.parse.encoding import detect_encoding

    found = marked_encoding(page) or known_encoding(said)
    if found:
        return found
    found = known_encoding(detect_encoding(page, from_html_meta=True) or "") or "utf-8"
    return "utf-8" if found.startswith("utf-16") and b"\0" not in page[:_STATES_ITSELF_BYTES] else found
