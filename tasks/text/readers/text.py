"""Plain text, Markdown and reStructuredText: a file is a document."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from tasks.text.readers.records import Bad, Item, Text, Wanted, read_whole

_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def read_text(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """The whole file, which must be UTF-8, or UTF-16 with a byte order mark; the mark is dropped, and so are carriage
    returns of line ends."""
    raw = read_whole(stream)
    encoding = marked_encoding(raw) or "utf-8"
    if encoding == "utf-8" and raw.count(0) > len(raw) / 4:
        yield Bad("", "a quarter of its bytes are NUL: if it is UTF-16, convert it, e.g. `iconv -f utf-16le -t utf-8`")
        return
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        yield Bad(f"byte {error.start}", not_utf8(raw, error))
        return
    yield Text("", text.removeprefix("\ufeff").replace("\r\n", "\n"))


def marked_encoding(raw: bytes) -> str:
    """What a byte order mark says; "" where there is none."""
    return next((encoding for mark, encoding in _MARKS.items() if raw.startswith(mark)), "")


def known_encoding(label: str) -> str:
    """The codec of this name; "" if there is none that makes text."""
    try:
        codec = codecs.lookup(label)
    except (LookupError, ValueError):
        return ""
    return codec.name if codec._is_text_encoding else ""


def not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    """What to tell about bytes that are not UTF-8: the byte, its line, and the remedy."""
    line = raw.count(b"\n", 0, error.start) + 1
    if marked_encoding(raw).startswith("utf-16"):
        guess = "utf-16"
    else:
        # Windows' letters stand where Latin-1 has control characters, which no text holds.
        guess = "cp1252" if any(0x80 <= byte <= 0x9F for byte in raw) else "latin1"
    return f"not UTF-8 (byte 0x{raw[error.start]:02x} in line {line}): convert it, e.g. `iconv -f {guess} -t utf-8`"
