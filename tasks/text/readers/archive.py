"""Zip and tar archives: their members are read as streams and never written anywhere, so no path can lead outside."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from tasks.text.readers.records import Bad, Item

MAX_MEMBER_BYTES = 1 << 30
"""A member is held in memory whole; one that is larger is refused, be it large or a decompression bomb."""

ReadMember = Callable[[BinaryIO, str], Iterator[Item]]


def read_zip(stream: BinaryIO, read_member: ReadMember) -> Iterator[Item]:
    """The records of all members, in the order of their names."""
    with zipfile.ZipFile(stream) as archive:
        # A zip's directory may list them in any order; a tar can only be read as it lies.
        for member in sorted(archive.infolist(), key=lambda info: info.filename):
            if not member.is_dir():
                yield from _placed(member.filename, member.file_size, partial(archive.read, member), read_member)


def read_tar(stream: BinaryIO, read_member: ReadMember) -> Iterator[Item]:
    """The records of all members, in their order in the archive; links and devices are passed over."""
    # "|": read once from start to end, since a compressed archive cannot be entered in the middle.
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                yield from _placed(member.name, member.size, content.read, read_member)


def _placed(name: str, size: int, load: Callable[[], bytes], read_member: ReadMember) -> Iterator[Item]:
    """The records of one member, each with the member's name before its place."""
    path = PurePosixPath(name)
    if any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in path.parts):
        return
    if path.is_absolute() or ".." in path.parts:
        yield Bad(name, "the member's path leads outside of the archive")
    elif size > MAX_MEMBER_BYTES:
        yield Bad(name, f"the member has {size} bytes; at most {MAX_MEMBER_BYTES} are read")
    else:
        for item in read_member(cast(BinaryIO, io.BytesIO(load())), name):
            yield replace(item, place=f"{name} {item.place}".strip())
