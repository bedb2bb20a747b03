"""Zip and tar archives: their members are read as streams and never written anywhere, so no path can lead outside."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from tasks.text.readers.records import MAX_BYTES, Bad, Item, guarded, printable, rest_lost

ReadMember = Callable[[BinaryIO, str], Iterator[Item]]


def read_zip(stream: BinaryIO, read_member: ReadMember) -> Iterator[Item]:
    """The records of all members, in the order of their names; a damaged or encrypted one costs itself alone."""
    with zipfile.ZipFile(stream) as archive:
        # A zip's directory may list them in any order; a tar can only be read as it lies.
        for member in sorted(archive.infolist(), key=lambda info: info.filename):
            if not member.is_dir():
                load = partial(archive.read, member)
                yield from _placed(member.filename, member.file_size, member.compress_size, load, read_member)


def read_tar(stream: BinaryIO, read_member: ReadMember) -> Iterator[Item]:
    """The records of all members, in their order in the archive; links and devices are passed over.

    Archives that were joined are read to their end, and so is what stands behind a damaged header.
    """
    damaged: list[int] = []

    class Header(tarfile.TarInfo):
        """Counts the blocks that should be headers and are none."""

        @classmethod
        def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                if type(error).__name__ == "InvalidHeaderError":  # neither an empty block nor the end of the file
                    damaged.append(len(buf))
                raise

    last = ""
    # "|": read once from start to end, since a compressed archive cannot be entered in the middle.
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=Header, ignore_zeros=True) as archive:
        for member in archive:
            yield from _skipped(damaged, last)
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                yield from _placed(member.name, member.size, member.size, content.read, read_member)
            last = printable(member.name)
        yield from _skipped(damaged, last)


def _skipped(damaged: list[int], last: str) -> Iterator[Bad]:
    if damaged:
        place = f"after {last}" if last else ""
        yield Bad(place, "cannot be read: no header of a tar member is here", bytes=sum(damaged))
        damaged.clear()


def _placed(name: str, size: int, stored: int, load: Callable[[], bytes], read_member: ReadMember) -> Iterator[Item]:
    """The records of one member, each with the member's name before its place; `stored`: its bytes in the archive."""
    shown, path = printable(name), PurePosixPath(name)
    if any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in path.parts):
        return
    if path.is_absolute() or ".." in path.parts:
        yield Bad(shown, "the member's path leads outside of the archive", bytes=stored)
    elif size > MAX_BYTES:
        yield Bad(shown, f"the member has {size} bytes; at most {MAX_BYTES} are read", bytes=stored)
    else:
        for item in guarded(_loaded(name, load, read_member), rest_lost(lambda nothing: stored)):
            yield replace(item, place=f"{shown} {item.place}".strip())


def _loaded(name: str, load: Callable[[], bytes], read_member: ReadMember) -> Iterator[Item]:
    yield from read_member(cast(BinaryIO, io.BytesIO(load())), name)
