"""Python source: its documentation, read by parsing."""

from collections.abc import Iterator
from typing import BinaryIO

from tasks.text.python.pydocs import group_documents, read_entries
from tasks.text.readers.records import Bad, Item, Text, Wanted, read_whole


def read_python(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """Documents of the module in the stream; names are relative to the module, as its place is not known here."""
    try:
        entries = read_entries(read_whole(stream).decode("utf-8-sig"), "module.py")
    except SyntaxError as error:
        yield Bad(f"line {error.lineno}", f"not Python of this version: {error.msg}")
        return
    for line, text in group_documents(entries):
        yield Text(f"line {line}", text)
