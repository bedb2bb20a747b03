"""Every format gives its records with their places; damage costs a record or the rest of a file, never the run."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
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
from tasks.text.readers.records import Bad, HtmlExtractor, Item, Row, Text
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
         "a.warc.gz", "a.zip", "a.tar", "a.tgz", "a.txt.zst", "a.csv.xz", "a.md.bz2"]
    ),
)  # fmt: skip
def test_no_garbage_raises(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("garbage") / name
    path.write_bytes(content)
    assert all(isinstance(item, Text | Row | Bad) for item in read_file(path, name))


def test_a_line_in_the_table_is_all_that_a_new_format_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_lines(stream: BinaryIO, extractor: HtmlExtractor) -> Iterator[Item]:
        yield from (Text(f"line {number}", line.decode()) for number, line in enumerate(stream, start=1))

    (tmp_path / "a.poem.gz").write_bytes(gzip.compress(b"one"))
    with pytest.raises(ValueError, match=r"Expected \.txt .*\.warc \.zip or \.tar, plain or compressed \(\.gz "):
        resolve_source(str(tmp_path), tmp_path / "cache")
    monkeypatch.setitem(READERS, ".poem", read_lines)
    (file,) = resolve_source(str(tmp_path), tmp_path / "cache").files
    assert list(read_file(file.path, file.name)) == [Text("line 1", "one")]
    with pytest.raises(ValueError, match=r"\.poem \.zip or"):
        resolve_source(str(tmp_path / "nothing-*"), tmp_path / "cache")
