"""Bodies of stored HTTP responses as the browser would have them: transfer and content codings undone."""

import io
import re
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from tasks.text.readers.records import MAX_BYTES, read_whole

_CODINGS = re.compile(rb"^(?:transfer|content)-encoding:[ \t]*([^\r\n]*)", re.I | re.M)
_CHUNK_HEAD = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_ANY_ZLIB_HEADER = 47
_NO_ZLIB_HEADER = -15


def decoded_body(head: bytes, body: bytes) -> bytes:
    """The body with what its headers name undone, the transfer's coding first. Crawlers that undid a coding and kept
    its header are common, so a body that plainly does not begin as the coding would is left as it is.

    Raises:
        ValueError: a coding is not known, or the body is damaged.
    """
    names = [name.strip().lower() for found in _CODINGS.findall(head) for name in found.split(b",")]
    for name in sorted(names, key=lambda name: name != b"chunked"):
        if name in (b"", b"identity", b"none", b"utf-8"):
            continue
        undo = _UNDO.get(name)
        if undo is None:
            raise ValueError(f"the body is encoded as {name.decode('latin-1')!r}, which cannot be undone")
        try:
            body = undo(body)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise ValueError(f"the body cannot be undone as {name.decode()!r}: {error}") from error
    return body


def _unchunked(body: bytes) -> bytes:
    position = 0
    parts: list[bytes] = []
    while head := _CHUNK_HEAD.match(body, position):
        size = int(head[1], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(body[head.end() : head.end() + size])
        if len(parts[-1]) < size:
            raise ValueError(f"a chunk promises {size} bytes, {len(parts[-1])} are there")
        end = head.end() + size
        position = end + (2 if body[end : end + 2] == b"\r\n" else 1)
    if position:
        raise ValueError(f"no size of a chunk at byte {position}")
    return body


def _gunzipped(body: bytes) -> bytes:
    return _inflated(body, _ANY_ZLIB_HEADER) if body.startswith(b"\x1f\x8b") else body


def _deflated(body: bytes) -> bytes:
    try:
        return _inflated(body, _ANY_ZLIB_HEADER)
    except zlib.error:
        if body.lstrip().startswith(b"<"):
            return body
        return _inflated(body, _NO_ZLIB_HEADER)  # what some servers mean by it


def _inflated(body: bytes, header: int) -> bytes:
    machine = zlib.decompressobj(header)
    found = machine.decompress(body, MAX_BYTES)
    if not machine.eof:
        raise ValueError("it is clipped, or of more than a page may have")
    return found


def _by(reader_name: str) -> Callable[[bytes], bytes]:
    """A coding that FastWARC has a reader for."""

    def undo(body: bytes) -> bytes:
        from fastwarc import stream_io

        reader: Any = getattr(stream_io, reader_name)(io.BytesIO(body))
        try:
            return read_whole(cast(BinaryIO, reader))
        except OSError:
            if body.lstrip().startswith(b"<"):
                return body
            raise

    return undo


_UNDO: dict[bytes, Callable[[bytes], bytes]] = {
    b"chunked": _unchunked,
    b"gzip": _gunzipped,
    b"x-gzip": _gunzipped,
    b"deflate": _deflated,
    b"br": _by("BrotliReader"),
    b"zstd": _by("ZstdReader"),
}
