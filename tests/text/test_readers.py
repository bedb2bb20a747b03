"""Every format gives its records with their places; damage costs a record or the rest of a file, never the run."""

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.text.readers import READERS, endings, is_readable, read_file
from tasks.text.readers.parts import read_part
from tasks.text.readers.records import Bad, Item, Row, Text, Wanted
from tasks.text.source import resolve_source

ROWS = [{"text": f"Record {i}, naïve 你好."} for i in range(2500)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PAGE = (
    "<html><head><title>t</title></head><body><nav><a href='/'>Home</a><a href='/b'>Menu entry</a></nav><main><h1>On"
    " iron</h1><p>"
    + "Molten pig iron turns to steel when air is blown through it, as the oxygen burns the carbon. " * 6
    + "</p></main><footer>Imprint and cookies</footer></body></html>"
)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


class Kept(io.BytesIO):
    """Stays open when its writer is closed."""

    def close(self) -> None:
        """Not yet."""


def brotli(data: bytes) -> bytes:
    from fastwarc.stream_io import BrotliWriter

    sink = Kept()
    writer = BrotliWriter(sink)
    writer.write(data)
    writer.close()
    return sink.getvalue()


def items_of(tmp_path: Path, name: str, content: bytes) -> list[Item]:
    path = tmp_path / name.replace("/", "_")
    path.write_bytes(content)
    return list(read_file(path, name))


def bad(items: list[Item]) -> list[Bad]:
    return [item for item in items if isinstance(item, Bad)]


@pytest.mark.parametrize("ending", [".txt", ".md", ".rst"])
def test_text_is_one_document(tmp_path: Path, ending: str) -> None:
    assert items_of(tmp_path, f"a{ending}", b"\xef\xbb\xbfOne\r\ntwo\n") == [Text("", "One\ntwo\n")]


def test_text_that_is_not_utf8_says_where(tmp_path: Path) -> None:
    (found,) = items_of(tmp_path, "a.txt", b"fine\ncaf\xe9\n")
    assert isinstance(found, Bad) and found.place == "byte 8" and "0xe9 in line 2" in found.error


@pytest.mark.parametrize(
    ("ending", "compress"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)],
)
def test_jsonl_in_every_compression(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
    items = items_of(tmp_path, f"a.jsonl{ending}", compress(JSONL))
    assert [item.fields for item in items if isinstance(item, Row)] == ROWS
    assert items[41].place == "line 42"


@pytest.mark.parametrize(
    ("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)]
)
def test_clipped_compression_costs_the_rest(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
    lines = "".join(json.dumps({"text": f"{i} {i * i * 7919 % 10**12}"}) + "\n" for i in range(60_000)).encode()
    whole = compress(lines)
    items = items_of(tmp_path, f"a.jsonl{ending}", whole[: len(whole) * 3 // 4])
    assert len(bad(items)) in (1, 2) and isinstance(items[-1], Bad)
    assert len(items) > 1 or ending == ".bz2"
    assert items[-1].place.startswith(("after line", "line")) or len(items) == 1


def test_two_gzip_members_are_one_stream(tmp_path: Path) -> None:
    half = JSONL[: JSONL.index(b"\n", len(JSONL) // 2) + 1]
    items = items_of(tmp_path, "a.jsonl.gz", gzip.compress(half) + gzip.compress(JSONL[len(half) :]))
    assert len(items) == len(ROWS) and not bad(items)


def test_broken_json_lines_are_named_and_passed_over(tmp_path: Path) -> None:
    content = b'{"text": "a"}\n{"text": \n\n["no", "object"]\n{"text": "b\xff"}\n{"text": "c"}\n'
    items = items_of(tmp_path, "a.jsonl", content)
    assert [item.place for item in items] == ["line 1", "line 2", "line 4", "line 5", "line 6"]
    assert [type(item) for item in items] == [Row, Bad, Bad, Bad, Row]
    assert "not JSON" in bad(items)[0].error and '{"text":' in bad(items)[0].error
    assert "expected an object" in bad(items)[1].error


def test_json_list_object_and_lines_under_the_wrong_ending(tmp_path: Path) -> None:
    assert items_of(tmp_path, "a.json", b'[{"a": 1}, 5]') == [
        Row("record 1", {"a": 1}),
        Bad("record 2", "expected an object with named fields, found 5"),
    ]
    assert items_of(tmp_path, "b.json", b'{"a": 1}') == [Row("", {"a": 1})]
    assert [i.place for i in items_of(tmp_path, "c.json", b'{"a": 1}\n{"a": 2}\n')] == ["line 1", "line 2"]
    assert isinstance(items_of(tmp_path, "d.json", b"[1, 2")[0], Bad)


def test_csv_and_tsv(tmp_path: Path) -> None:
    items = items_of(tmp_path, "a.csv", b'id,text\n1,"two\nlines, and a comma"\n2\n3,x\n')
    assert items[0] == Row("line 3", {"id": "1", "text": "two\nlines, and a comma"})
    assert isinstance(items[1], Bad) and items[1].place == "line 4"
    assert items[2] == Row("line 5", {"id": "3", "text": "x"})
    assert items_of(tmp_path, "a.tsv", b"id\ttext\n1\ta,b\n") == [Row("line 2", {"id": "1", "text": "a,b"})]


def test_csv_field_longer_than_pythons_default_limit(tmp_path: Path) -> None:
    (row,) = items_of(tmp_path, "a.csv", b"text\n" + b"x" * 300_000 + b"\n")
    assert isinstance(row, Row) and len(row.fields["text"]) == 300_000


def test_parquet_and_arrow(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        items = list(read_file(tmp_path / name, name))
        assert [item.fields for item in items if isinstance(item, Row)] == ROWS
        assert items[-1].place == "row 2500"


def test_clipped_parquet_costs_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (found,) = items_of(tmp_path, "b.parquet", content[:-100])
    assert isinstance(found, Bad) and "cannot be read" in found.error


@pytest.mark.parametrize("extractor", ["fast", "precise"])
def test_html_main_content(tmp_path: Path, extractor: str) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    (found,) = read_file(tmp_path / "a.html", "a.html", extractor)  # type: ignore[arg-type]
    assert isinstance(found, Text)
    assert "Molten pig iron" in found.text and "cookies" not in found.text and "Menu entry" not in found.text


def test_html_of_another_encoding(tmp_path: Path) -> None:
    page = PAGE.replace("<title>", '<meta charset="iso-8859-1"><title>').replace("Molten", "Café Molten")
    (found,) = items_of(tmp_path, "a.html", page.encode("latin-1"))
    assert isinstance(found, Text) and "Café Molten" in found.text


def test_python_source(tmp_path: Path) -> None:
    source = b'"""A module about steel."""\n\ndef blow(air=1):\n    """Blow air through the iron."""\n'
    (found,) = items_of(tmp_path, "a.py", source)
    assert isinstance(found, Text) and "blow(air=1)\n\nBlow air through the iron." in found.text
    (broken,) = items_of(tmp_path, "b.py", b'"""A module."""\nprint "two"\n')
    assert isinstance(broken, Bad) and broken.place == "line 2"


def warc_record(kind: str, content_type: str, body: bytes, uri: str = "http://example.org/a") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nWARC-Record-ID: <urn:uuid:{len(body)}>\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


HTTP_PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + PAGE.encode()
HTTP_IMAGE = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n\x89PNG"


@pytest.mark.parametrize(("ending", "compress"), [("", bytes), (".gz", gzip.compress)])
def test_warc(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
    records = [
        warc_record("warcinfo", "application/warc-fields", b"software: x\r\n"),
        warc_record("response", "application/http; msgtype=response", HTTP_IMAGE),
        warc_record("response", "application/http; msgtype=response", HTTP_PAGE, "http://example.org/iron"),
        warc_record("conversion", "text/plain", "Just text, naïve.".encode()),
    ]
    content = b"".join(compress(record) for record in records)
    offset = len(b"".join(compress(record) for record in records[:2]))
    page, text = items_of(tmp_path, f"a.warc{ending}", content)
    assert isinstance(page, Text) and "Molten pig iron" in page.text
    assert (page.address, page.place) == ("http://example.org/iron", f"byte {offset}")
    assert isinstance(text, Text) and text.text == "Just text, naïve."


@pytest.mark.parametrize(("ending", "compress"), [("", bytes), (".gz", gzip.compress)])
def test_clipped_warc_keeps_what_was_before(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
    whole = compress(warc_record("response", "application/http; msgtype=response", HTTP_PAGE))
    items = items_of(tmp_path, f"a.warc{ending}", whole + whole[: len(whole) // 2])
    assert isinstance(items[0], Text) and "Molten pig iron" in items[0].text
    assert len(items) == 2 and isinstance(items[1], Bad) and "clipped" in items[1].error


def zip_of(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return sink.getvalue()


MEMBERS = {
    "docs/a.txt": b"Alpha",
    "docs/b.jsonl.gz": gzip.compress(b'{"text": "Beta"}\n{\n'),
    "docs/picture.png": b"\x89PNG",
    ".hidden/c.txt": b"no",
    "../escape.txt": b"outside",
    "inner.zip": zip_of({"x.txt": b"no"}),
}


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.zip", zip_of(MEMBERS)), ("a.tar", tar_of(MEMBERS)), ("a.tar.gz", gzip.compress(tar_of(MEMBERS))),
     ("a.tgz", gzip.compress(tar_of(MEMBERS))), ("a.tar.xz", lzma.compress(tar_of(MEMBERS)))],
)  # fmt: skip
def test_archives(tmp_path: Path, name: str, content: bytes) -> None:
    items = {item.place: item for item in items_of(tmp_path, name, content)}
    assert items["docs/a.txt"] == Text("docs/a.txt", "Alpha")
    assert items["docs/b.jsonl.gz line 1"] == Row("docs/b.jsonl.gz line 1", {"text": "Beta"})
    assert isinstance(items["docs/b.jsonl.gz line 2"], Bad)
    assert "outside of the archive" in bad([items["../escape.txt"]])[0].error
    assert "unpack" in bad([items["inner.zip"]])[0].error
    assert len(items) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [name], "nothing is unpacked"


def test_clipped_archives_keep_what_was_before(tmp_path: Path) -> None:
    (found,) = items_of(tmp_path, "a.zip", zip_of(MEMBERS)[:-30])
    assert isinstance(found, Bad)
    whole = tar_of({"a.txt": b"A" * 2000, "b.txt": b"B" * 2000})
    items = items_of(tmp_path, "a.tar", whole[:3500])
    assert items[0] == Text("a.txt", "A" * 2000) and isinstance(items[-1], Bad)


def wide_row_group_file(path: Path) -> list[int]:
    """Eight row groups of 20 rows; returns where the pages of each begin."""
    schema = pa.schema([("text", pa.string()), ("other", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for group in range(8):
            texts = [f"{group} {i} " + "word " * 300 for i in range(20)]
            writer.write_table(pa.table({"text": texts, "other": texts}))
    metadata = pq.read_metadata(path)
    return [metadata.row_group(g).column(c).data_page_offset for c in (0, 1) for g in range(8)]


def test_a_damaged_row_group_costs_itself_and_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    offsets = wide_row_group_file(path)
    raw = bytearray(path.read_bytes())
    raw[offsets[5] : offsets[5] + 64] = bytes(64)
    raw[offsets[8 + 2] : offsets[8 + 2] + 64] = bytes(64)  # a column that nobody asks for
    path.write_bytes(raw)
    part_bytes = len(raw) // 4 + 1
    parts = [i for part in range(4) for i in read_part(path, "a.parquet", part, part_bytes)]
    for items in (list(read_file(path, "a.parquet")), parts):
        (lost,) = bad(items)
        assert len(items) == 141 and lost.place == "rows 101 to 120" and lost.records == 20
        assert len(raw) / 9 < lost.bytes < len(raw) / 7
        assert items[-1].place == "row 160"
    assert len(bad(list(read_file(path, "a.parquet", fields=None)))) == 2


def test_a_value_nobody_asked_for_costs_nothing(tmp_path: Path) -> None:
    odd = {
        "date": pa.array([0, 400_000_000_000_000], pa.timestamp("ms")),
        "zone": pa.array([0, 1], pa.timestamp("us", "Mars/Olympus")),
        "url": pa.array([b"a", b"\xff"]).view(pa.string()),
    }
    table = pa.table({"text": ["a", "b"], **odd})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "b.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "b.arrow"):
        assert list(read_file(tmp_path / name, name)) == [Row("row 1", {"text": "a"}), Row("row 2", {"text": "b"})]
        first, second = read_file(tmp_path / name, name, fields=("text", "url"))
        assert isinstance(first, Row) and isinstance(second, Bad) and "field 'url'" in second.error
        (_, far) = read_file(tmp_path / name, name, fields=("date",))
        assert isinstance(far, Row) and str(far.fields["date"]).startswith("14645")
    named = list(read_file(tmp_path / "a.parquet", "a.parquet", fields=("body",)))
    assert isinstance(named[0], Row) and list(named[0].fields) == ["text", "date", "zone", "url"]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_json_that_only_python_reads(tmp_path: Path, ending: str) -> None:
    lines = [b'{"text": "a", "x": NaN}', b'{"text": "b", "x": ' + b"9" * 6000 + b"}", b'{"text": "c\\ud800"}',
             b'{"text": "d", "x": "\xff"}', b'{"text": "\xff"}']  # fmt: skip
    content = b"\n".join(lines) if ending == "jsonl" else b"[" + b",\n".join(lines) + b"]"
    items = items_of(tmp_path, f"a.{ending}", b"\xef\xbb\xbf" + content)
    texts = [item.fields["text"] for item in items if isinstance(item, Row)]
    assert texts == ["a", "b", "c\ufffd", "d"] and "field 'text': not UTF-8" in bad(items)[0].error


def test_a_clipped_json_list_keeps_what_was_before(tmp_path: Path) -> None:
    content = json.dumps(ROWS).encode()
    items = items_of(tmp_path, "a.json", content[: len(content) // 2])
    assert [item.fields for item in items[:-1] if isinstance(item, Row)] == ROWS[: len(items) - 1]
    assert len(items) > 1200 and bad(items)[0].bytes > 0
    (deep,) = items_of(tmp_path, "b.json", b"[" * 100_000)
    assert isinstance(deep, Bad)


def test_a_bad_byte_costs_its_csv_row_if_the_field_is_wanted(tmp_path: Path) -> None:
    items = items_of(tmp_path, "a.csv", b"name,text\nRen\xe9,one\nAda,tw\xf6\nBob,three\n")
    assert [item.fields["text"] for item in items if isinstance(item, Row)] == ["one", "three"]
    assert bad(items)[0].place == "line 3" and "field 'text': not UTF-8" in bad(items)[0].error


def test_utf16_text_with_its_mark_is_read_and_others_are_told_the_remedy(tmp_path: Path) -> None:
    assert items_of(tmp_path, "a.txt", "Größe\r\n".encode("utf-16")) == [Text("", "Größe\n")]
    remedies = {b"\xff\xfea": "-f utf-16 ", "Größe zu".encode("utf-16-le"): "-f utf-16le", b"It\x92s": "-f cp1252"}
    for content, remedy in {**remedies, b"caf\xe9": "-f latin1"}.items():
        assert remedy in bad(items_of(tmp_path, "b.txt", content))[0].error


def test_a_byte_order_mark_overrides_meta_and_meta_cannot_mean_utf16(tmp_path: Path) -> None:
    page = PAGE.replace("<title>", '<meta charset="{}"><title>').replace("Molten", "Café Molten")
    for content in (
        b"\xef\xbb\xbf" + page.replace("{}", "latin1").encode(),
        page.replace("{}", "latin1").encode("utf-16"),
        page.replace("{}", "utf-16").encode(),
    ):
        (found,) = items_of(tmp_path, "a.html", content)
        assert isinstance(found, Text) and "Café Molten" in found.text and "\ufeff" not in found.text


def chunked(body: bytes) -> bytes:
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    return b"".join(b"%x;x=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


BODY = PAGE.encode()
SQUEEZED = gzip.compress(BODY)


@pytest.mark.parametrize(
    ("headers", "body", "count"),
    [
        (b"Transfer-Encoding: chunked", chunked(BODY), 1),
        (b"Transfer-Encoding: chunked\r\nContent-Encoding: gzip", chunked(SQUEEZED), 1),
        (b"content-encoding: gzip\r\ntransfer-encoding: chunked", chunked(SQUEEZED), 1),
        (b"Content-Encoding: gzip", SQUEEZED, 1),
        (b"Content-Encoding: deflate", zlib.compress(BODY), 1),
        (b"Content-Encoding: deflate", zlib.compress(BODY)[2:-4], 1),
        (b"Content-Encoding: br", brotli(BODY), 1),
        (b"Content-Encoding: zstd", zstd(BODY), 1),
        (b"Content-Encoding: gzip", BODY, 1),
        (b"Transfer-Encoding: chunked", BODY, 1),
        (b"Content-Encoding: gzip", SQUEEZED[:-30], 0),
        (b"Transfer-Encoding: chunked", chunked(BODY)[:-60], 0),
        (b"Content-Encoding: sdch", b"\x80\x81", 0),
    ],
)
def test_bodies_are_read_as_a_browser_has_them(tmp_path: Path, headers: bytes, body: bytes, count: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf8mb4\r\n" + headers + b"\r\n\r\n"
    after = warc_record("response", "application/http; msgtype=response", HTTP_PAGE)
    content = warc_record("response", "application/http; msgtype=response", head + body) + after
    items = items_of(tmp_path, "a.warc", content)
    assert len(items) == 2 and len(bad(items)) == 1 - count
    assert all("Molten pig iron" in item.text for item in items if isinstance(item, Text))


@pytest.mark.parametrize("status", [b"404 Not Found", b"301 Moved", b"503 Busy"])
def test_pages_of_errors_and_redirections_are_no_text(tmp_path: Path, status: bytes) -> None:
    page = HTTP_PAGE.replace(b"200 OK", status)
    assert items_of(tmp_path, "a.warc", warc_record("response", "application/http; msgtype=response", page)) == []


def test_charset_of_plain_text_and_the_names_of_wet_files(tmp_path: Path) -> None:
    message = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=%s\r\n\r\n%s"
    for charset, text in ((b"iso-8859-1", "Größe".encode("latin-1")), (b"nonsense", "Größe".encode())):
        record = warc_record("response", "application/http; msgtype=response", message % (charset, text))
        (found,) = items_of(tmp_path, "a.warc.wet.gz", gzip.compress(record))
        assert isinstance(found, Text) and found.text == "Größe"


def test_a_damaged_member_costs_itself(tmp_path: Path) -> None:
    whole = zip_of({f"{name}.txt": name.encode() * 2000 for name in "abcdef"})
    at = whole.index(b"b.txt") + 8
    items = items_of(tmp_path, "a.zip", whole[:at] + b"\xff\xff" + whole[at + 2 :])
    assert [item.place for item in items] == [f"{name}.txt" for name in "abcdef"]
    (lost,) = bad(items)
    assert lost.place == "b.txt" and 0 < lost.bytes < 100
    members = {f"{name}.txt": name.encode() * 2000 for name in "abc"}
    packed = bytearray(tar_of(members))
    packed[512 + 2048 : 512 + 2048 + 100] = b"\xff" * 100  # the header of b.txt
    items = items_of(tmp_path, "a.tar", bytes(packed))
    assert [item.place for item in items] == ["a.txt", "after a.txt", "c.txt"]
    assert bad(items)[0].bytes >= 512


def test_archives_that_were_joined_are_read_to_the_end(tmp_path: Path) -> None:
    items = items_of(tmp_path, "a.tar", tar_of({"a.txt": b"A"}) + tar_of({"b.txt": b"B"}))
    assert items == [Text("a.txt", "A"), Text("b.txt", "B")]


@pytest.mark.parametrize(
    "packing", [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)]
)
@pytest.mark.parametrize("container", ["tar", "zip", "parquet", "arrow", "warc", "csv"])
def test_every_container_in_every_compression(
    tmp_path: Path, container: str, packing: tuple[str, Callable[[bytes], bytes]]
) -> None:
    table, sink = pa.table({"text": ["Alpha"]}), io.BytesIO()
    pq.write_table(table, tmp_path / "table")
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = {
        "tar": tar_of({"a.jsonl.gz": gzip.compress(b'{"text": "Alpha"}')}),
        "zip": zip_of({"a.jsonl.gz": gzip.compress(b'{"text": "Alpha"}')}),
        "parquet": (tmp_path / "table").read_bytes(),
        "arrow": sink.getvalue(),
        "warc": warc_record("conversion", "text/plain", b"Alpha"),
        "csv": b"text\nAlpha\n",
    }[container]
    ending, compress = packing
    (found,) = items_of(tmp_path, f"a.{container}{ending}", compress(content))
    assert (found.text if isinstance(found, Text) else found.fields["text"]) == "Alpha"  # type: ignore[union-attr]


def test_a_bomb_is_a_loss_and_takes_no_more_memory_than_a_piece_may(tmp_path: Path) -> None:
    """Three gigabytes of zeros in a few kilobytes of zstd, inside a zip."""
    block = bytes(1 << 26)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        for _ in range(48):
            stream.write(block)
    (tmp_path / "a.zip").write_bytes(zip_of({"a.txt.zst": bytes(sink.getvalue()), "b.txt": b"Beta"}))
    code = (
        "import resource, sys; from pathlib import Path; from tasks.text.readers import read_file\n"
        "print([type(item).__name__ for item in read_file(Path(sys.argv[1]), 'a.zip')])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.zip")], capture_output=True, text=True)
    kinds, kilobytes = found.stdout.splitlines()
    assert kinds == "['Bad', 'Text']" and int(kilobytes) < 2 << 20, found.stderr


def test_what_a_library_raises_is_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As pyo3's, which is no Exception."""

    for error in (LookupError, OverflowError, TypeError, MemoryError, RecursionError, Panic):

        def read_one_and_fail(stream: BinaryIO, wanted: Wanted, error: type[BaseException] = error) -> Iterator[Item]:
            yield Text("line 1", "one")
            raise error("what \udcff")

        monkeypatch.setitem(READERS, ".poem", read_one_and_fail)
        first, lost = items_of(tmp_path, "a.poem", b"12345")
        assert first == Text("line 1", "one") and isinstance(lost, Bad)
        assert lost.place == "after line 1" and error.__name__ in lost.error and lost.error.isascii()
    (gone,) = read_file(tmp_path / "none.txt", "none.txt")
    assert isinstance(gone, Bad) and "cannot be opened" in gone.error


def test_endings() -> None:
    assert endings("x/A.JSONL.GZ") == (".jsonl", ".gz")
    assert endings("x/a.tgz") == (".tar", ".gz")
    assert endings("v1.2/README") == ("", "")
    assert is_readable("a.b.md") and not is_readable("a.exe") and not is_readable("a.gz")


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=300),
    name=st.sampled_from(
        ["a.txt", "a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.arrow", "a.html", "a.py", "a.warc",
         "a.warc.gz", "a.zip", "a.tar", "a.tgz", "a.txt.zst", "a.csv.xz", "a.md.bz2",
         "a.tar.zst", "a.zip.gz", "a.parquet.xz", "a.wet", "a.tsv"]
    ),
)  # fmt: skip
def test_no_garbage_raises(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("garbage") / name
    path.write_bytes(content)
    assert all(isinstance(item, Text | Row | Bad) for item in read_file(path, name))


def test_a_line_in_the_table_is_all_that_a_new_format_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_lines(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
        yield from (Text(f"line {number}", line.decode()) for number, line in enumerate(stream, start=1))

    (tmp_path / "a.poem.gz").write_bytes(gzip.compress(b"one"))
    with pytest.raises(ValueError, match=r"Expected \.txt .*\.warc \.zip or \.tar, plain or compressed \(\.gz "):
        resolve_source(str(tmp_path), tmp_path / "cache")
    monkeypatch.setitem(READERS, ".poem", read_lines)
    (file,) = resolve_source(str(tmp_path), tmp_path / "cache").files
    assert list(read_file(file.path, file.name)) == [Text("line 1", "one")]
    with pytest.raises(ValueError, match=r"\.poem \.zip or"):
        resolve_source(str(tmp_path / "nothing-*"), tmp_path / "cache")
