"""Readers, one file per family of formats; here is which of them reads a file, told by the endings of its name."""

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow as pa

from tasks.text.readers import archive, compression, html, python, rows, tables, text, warc
from tasks.text.readers.records import Bad, HtmlExtractor, Item

Reader = Callable[[BinaryIO, HtmlExtractor], Iterator[Item]]

READERS: dict[str, Reader] = {
    ".txt": text.read_text,
    ".md": text.read_text,
    ".markdown": text.read_text,
    ".rst": text.read_text,
    ".html": html.read_html,
    ".htm": html.read_html,
    ".jsonl": rows.read_jsonl,
    ".ndjson": rows.read_jsonl,
    ".json": rows.read_json,
    ".csv": rows.read_csv,
    ".tsv": rows.read_tsv,
    ".parquet": tables.read_parquet,
    ".arrow": tables.read_arrow,
    ".py": python.read_python,
    ".warc": warc.read_warc,
}
ARCHIVES = (".zip", ".tar")
_UNREADABLE = (
    *compression.CLIPPED,
    UnicodeError,
    ValueError,
    # Of an encrypted member of a zip.
    RuntimeError,
    pa.ArrowException,
    tarfile.TarError,
    zipfile.BadZipFile,
)


def endings(name: str) -> tuple[str, str]:
    """(format, compression) by the endings of a name, lower case: "a.jsonl.gz" -> (".jsonl", ".gz")."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] == ".tgz":
        return ".tar", ".gz"
    packed = suffixes.pop() if suffixes and suffixes[-1] in compression.ENDINGS else ""
    return (suffixes[-1] if suffixes else ""), packed


def known_endings() -> str:
    """What can be read, in words."""
    *first, last = (*READERS, *ARCHIVES)
    return f"{' '.join(first)} or {last}, plain or compressed ({' '.join(compression.ENDINGS)})"


def is_readable(name: str) -> bool:
    """Whether the name ends like something that can be read."""
    return endings(name)[0] in READERS or is_archive(name)


def is_archive(name: str) -> bool:
    """Whether the name ends like a zip or tar archive."""
    return endings(name)[0] in ARCHIVES


def read_file(path: Path, name: str, extractor: HtmlExtractor = "fast") -> Iterator[Item]:
    """Every record of a file; what cannot be read comes as `Bad` in its place, and nothing is raised for it."""
    with path.open("rb") as stream:
        if not is_archive(name):
            yield from read_stream(stream, name, extractor)
            return
        opener = archive.read_zip if endings(name)[0] == ".zip" else archive.read_tar
        last = ""
        try:
            for item in opener(stream, lambda inner, member: read_member(inner, member, extractor)):
                last = item.place
                yield item
        except _UNREADABLE as error:
            yield Bad(f"after {last}" if last else "", f"cannot be read: {type(error).__name__}: {error}")


def read_member(stream: BinaryIO, name: str, extractor: HtmlExtractor) -> Iterator[Item]:
    """The records of a file inside an archive; a kind of file that cannot be read is passed over, as in a folder."""
    if is_archive(name):
        yield Bad("", "an archive inside an archive is not read: unpack the outer one")
    elif is_readable(name):
        yield from read_stream(stream, name, extractor)


def read_stream(stream: BinaryIO, name: str, extractor: HtmlExtractor) -> Iterator[Item]:
    """The records of one file that is not an archive."""
    kind, packed = endings(name)
    last = ""
    try:
        # FastWARC decompresses by itself, record by record.
        opened = compression.decompressed(stream, packed) if packed and kind != ".warc" else stream
        for item in READERS[kind](opened, extractor):
            last = item.place
            yield item
    except _UNREADABLE as error:
        yield Bad(f"after {last}" if last else "", f"cannot be read: {type(error).__name__}: {error}")
