"""Streams out of compressed files, by their endings."""

import bz2
import gzip
import io
import lzma
import os
import shutil
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, BinaryIO, cast

import pyarrow as pa

from tasks.text.readers.records import read_whole

ENDINGS = (".gz", ".zst", ".bz2", ".xz")
_MOST_WINDOW_BITS = 27
"""What zstd's library takes by itself; `zstd --long=31`, as Reddit's dumps are, needs 2 GiB of memory to be read."""
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def decompressed(stream: BinaryIO, ending: str) -> BinaryIO:
    """The content of a stream that was compressed as `ending` says."""
    if ending == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    if ending == ".zst":
        if _window_bits(stream) > _MOST_WINDOW_BITS:
            return cast(BinaryIO, io.BufferedReader(_LongWindow(stream), 1 << 20))
        native = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
        return cast(BinaryIO, io.BufferedReader(native, 1 << 20))
    if ending == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(stream))
    assert ending == ".xz", ending
    return cast(BinaryIO, lzma.LZMAFile(stream))


def _window_bits(stream: BinaryIO) -> int:
    """How far back the first zstd frame looks, as bits (RFC 8878, 3.1.1.1); 0 if it is no such frame."""
    start = stream.tell()
    header = stream.read(18)
    stream.seek(start)
    if len(header) < 18 or not header.startswith(_ZSTD_MAGIC):
        return 0
    flags = header[4]
    if not flags & 0x20:
        return 10 + (header[5] >> 3)
    size_bytes, dictionary_bytes = (1, 2, 4, 8)[flags >> 6], (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(header[5 + dictionary_bytes :][:size_bytes], "little").bit_length() - 1


class _LongWindow(io.RawIOBase):
    """A file of a long window, unpacked by the program zstd: no Python package of ours takes such a window."""

    def __init__(self, stream: BinaryIO) -> None:
        remedy = "convert it: `zstd -d --long=31 -c FILE | zstd -o NEW`"
        program = shutil.which("zstd")
        if program is None:
            raise ValueError(f"it was compressed with --long, and the program zstd is not here: {remedy}")
        try:
            os.lseek(stream.fileno(), stream.tell(), os.SEEK_SET)
        except OSError as error:
            raise ValueError(f"it was compressed with --long and stands inside another file: {remedy}") from error
        command = [program, "-dcq", "--long=31"]
        self._process = Popen(command, stdin=stream.fileno(), stdout=PIPE, stderr=DEVNULL)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes; OSError where zstd fails."""
        assert self._process.stdout is not None
        view = memoryview(buffer)
        chunk = self._process.stdout.read(len(view))
        view[: len(chunk)] = chunk
        if not chunk and self._process.wait():
            raise OSError(f"zstd ended with {self._process.returncode}: the file is damaged or clipped")
        return len(chunk)

    def close(self) -> None:
        """End the program, wherever it is."""
        if not self.closed and hasattr(self, "_process"):
            self._process.kill()
            self._process.communicate()
        super().close()


def unpacked(stream: BinaryIO) -> BinaryIO:
    """The same content in memory, where any part of it can be reached.

    Raises:
        ValueError: it is too large for that.
    """
    return io.BytesIO(read_whole(stream))
