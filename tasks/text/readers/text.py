"""Plain text, Markdown and reStructuredText: a file is a document."""

from collections.abc import Iterator
from typing import BinaryIO

from tasks.text.readers.records import Bad, HtmlExtractor, Item, Text


def read_text(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
    """The whole file, which must be UTF-8; a byte order mark is dropped, and so are carriage returns of line ends."""
    raw = stream.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Bad(f"byte {error.start}", not_utf8(raw, error))
        return
    yield Text("", text.replace("\r\n", "\n"))


def not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    """What to tell about bytes that are not UTF-8: the byte, its line, and the remedy."""
    line = raw.count(b"\n", 0, error.start) + 1
    return f"not UTF-8 (byte 0x{raw[error.start]:02x} in line {line}): convert it, e.g. `iconv -f latin1 -t utf-8`"
