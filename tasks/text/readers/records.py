"""What readers yield: a text, a row of fields, or a loss; each with its place in the file, and nothing is raised."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

HtmlExtractor = Literal["fast", "precise"]

DOCUMENT_FIELDS = ("text", "license", "batch")
MAX_BYTES = 1 << 30
"""What is held in memory whole, be it a page, a line or a member; more is a loss, be it large or a bomb."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """What is asked of a file. `fields`: those of a record that will be looked at, None for all; a damaged value of
    another field costs nothing."""

    html: HtmlExtractor = "fast"
    fields: tuple[str, ...] | None = DOCUMENT_FIELDS

    def asks(self, field: str) -> bool:
        """Whether the field will be looked at."""
        return self.fields is None or field in self.fields


@dataclass(frozen=True)
class Text:
    """A document that needs no field names. `place` is "" for a whole file; `address` is its URL where it has one."""

    place: str
    text: str
    address: str = ""


@dataclass(frozen=True)
class Row:
    """A record with named fields, such as a JSON line or a row of a table."""

    place: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Bad:
    """A record, or a stretch of a file, that could not be read, and why.

    records: how many are known to be lost, 1 where nobody knows
    bytes: of the file, where a stretch of it is lost and not one record; estimated where it is compressed
    """

    place: str
    error: str
    records: int = 1
    bytes: int = 0


Item = Text | Row | Bad


def guarded(items: Iterator[Item], loss: Callable[[str, str], Bad]) -> Iterator[Item]:
    """The items, and what `loss` makes of (reason, place of the last item) if reading on fails.

    The one boundary where a failure becomes a loss. What the libraries behind the readers raise on damaged bytes is
    without end (LookupError, OverflowError, MemoryError, a panic of Rust, which is no Exception), so all of it counts.
    """
    last = ""
    try:
        for item in items:
            last = item.place
            yield item
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        yield loss(f"cannot be read: {type(error).__name__}: {printable(str(error))}", last)


def rest_lost(lost_bytes: Callable[[bool], int]) -> Callable[[str, str], Bad]:
    """For `guarded`: everything after the last item is lost; `lost_bytes` is told whether there was none before."""
    return lambda reason, last: Bad(f"after {last}" if last else "", reason, bytes=lost_bytes(not last))


def read_whole(stream: BinaryIO) -> bytes:
    """All that is in the stream.

    Raises:
        ValueError: more than MAX_BYTES.
    """
    chunks: list[bytes] = []
    size = 0
    while chunk := stream.read(_CHUNK_BYTES):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BYTES:
            raise ValueError(f"one piece of more than {MAX_BYTES} bytes; at most so many are read")
    return b"".join(chunks)


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold (bytes of file names, halves of surrogate pairs) written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: object) -> str:
    """A found value as an error shows it: its start, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
