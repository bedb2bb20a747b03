"""Readers, one file per family of formats; here is which of them reads a file, told by the endings of its name.

Containers, formats and compressions combine freely: `a.tar.zst` may hold `b.jsonl.gz`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tasks.text.readers import archive, compression, html, python, rows, tables, text, warc
from tasks.text.readers.records import (
    DOCUMENT_FIELDS,
    Bad,
    HtmlExtractor,
    Item,
    Wanted,
    guarded,
    rest_lost,
)

Reader = Callable[[BinaryIO, Wanted], Iterator[Item]]

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
    ".wet": warc.read_warc,
    ".warc": warc.read_warc,
}
ARCHIVES: dict[str, Callable[[BinaryIO, archive.ReadMember], Iterator[Item]]] = {
    ".zip": archive.read_zip,
    ".tar": archive.read_tar,
}
_ENTERED_ANYWHERE = (".zip", ".parquet", ".arrow")
"""Their directory stands at the end, so a compressed one is unpacked into memory first."""
_SHORT_NAMES = {
    ".tgz": (".tar", ".gz"),
    ".tbz": (".tar", ".bz2"),
    ".tbz2": (".tar", ".bz2"),
    ".txz": (".tar", ".xz"),
    ".tzst": (".tar", ".zst"),
}


def endings(name: str) -> tuple[str, str]:
    """(format, compression) by the endings of a name, lower case: "a.jsonl.gz" -> (".jsonl", ".gz")."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] in _SHORT_NAMES:
        return _SHORT_NAMES[suffixes[-1]]
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


def read_file(
    path: Path, name: str, extractor: HtmlExtractor = "fast", fields: tuple[str, ...] | None = DOCUMENT_FIELDS
) -> Iterator[Item]:
    """Every record of a file; what cannot be read comes as `Bad` in its place, and nothing is raised for it.

    `fields` are those of a record that will be looked at (None: all of them); others may be damaged, odd or huge.
    """
    try:
        size = path.stat().st_size
        stream = path.open("rb")
    except OSError as error:
        yield Bad("", f"cannot be opened: {error.strerror}")
        return
    with stream:
        # What a decompressor took but did not give is not counted: 128 KiB at most.
        loss = rest_lost(lambda nothing: size if nothing else size - stream.tell())
        yield from guarded(read_stream(stream, name, Wanted(extractor, fields)), loss)


def read_stream(stream: BinaryIO, name: str, wanted: Wanted) -> Iterator[Item]:
    """The records of one file; failures are the caller's to guard."""
    kind, packed = endings(name)
    # FastWARC takes the members of a .warc.gz apart itself, which gives each record its place.
    is_fastwarcs = READERS.get(kind) is warc.read_warc and packed in (".gz", ".zst")
    opened = compression.decompressed(stream, packed) if packed and not is_fastwarcs else stream
    if packed and kind in _ENTERED_ANYWHERE:
        opened = compression.unpacked(opened)
    if kind in ARCHIVES:
        yield from ARCHIVES[kind](opened, lambda inner, member: read_member(inner, member, wanted))
    else:
        yield from READERS[kind](opened, wanted)


def read_member(stream: BinaryIO, name: str, wanted: Wanted) -> Iterator[Item]:
    """The records of a file inside an archive; a kind of file that cannot be read is passed over, as in a folder."""
    if is_archive(name):
        yield Bad("", "an archive inside an archive is not read: unpack the outer one")
    elif is_readable(name):
        yield from read_stream(stream, name, wanted)
