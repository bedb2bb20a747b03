"""SubRip subtitles: a file is a document, what is said in it without numbers and times."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from tasks.text.readers.records import Bad, Item, Text, Wanted
from tasks.text.readers.text import not_utf8

_TIMES = re.compile(r"\d+:\d\d:\d\d,\d{3} --> \d+:\d\d:\d\d,\d{3}")
_MARKUP = re.compile(r"</?[ibu]>")


def read_srt(stream: BinaryIO, wanted: Wanted) -> Iterator[Item]:
    """A line for each subtitle, which must be UTF-8; one without its times is `Bad`."""
    raw = stream.read()
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        yield Bad(f"byte {error.start}", not_utf8(raw, error))
        return
    said = []
    for number, block in enumerate(re.split(r"\n{2,}", text.strip()), start=1):
        _, times, *lines = [*block.split("\n"), ""]
        if not _TIMES.match(times):
            yield Bad(f"subtitle {number}", f"expected times such as 00:00:01,000 --> 00:00:02,500, found {times!r}")
        else:
            said.append(_MARKUP.sub("", " ".join(filter(None, lines))))
    yield Text("", "\n".join(said))
