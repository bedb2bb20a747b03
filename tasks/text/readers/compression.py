"""Streams out of compressed files, by their endings."""

import bz2
import gzip
import io
import lzma
import zlib
from typing import BinaryIO, cast

import pyarrow as pa

ENDINGS = (".gz", ".zst", ".bz2", ".xz")
CLIPPED = (EOFError, zlib.error, lzma.LZMAError, OSError)
"""What the streams below raise in the middle of a clipped or damaged file (gzip's own error is an OSError)."""


def decompressed(stream: BinaryIO, ending: str) -> BinaryIO:
    """The content of a stream that was compressed as `ending` says."""
    if ending == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    if ending == ".zst":
        native = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
        return cast(BinaryIO, io.BufferedReader(native, 1 << 20))
    if ending == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(stream))
    assert ending == ".xz", ending
    return cast(BinaryIO, lzma.LZMAFile(stream))
