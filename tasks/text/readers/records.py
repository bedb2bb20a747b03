"""What readers yield: a text, a row of fields, or a record that could not be read; each with its place in the file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

HtmlExtractor = Literal["fast", "precise"]


@dataclass(frozen=True)
class Text:
    """A document that needs no field names. `place` is "" for a whole file; `address` is its URL where it has one."""

    place: str
    text: str
    address: str = ""


@dataclass(frozen=True)
class Row:
    """A record with named fields, such as a JSON line or a row of a table."""

    place: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Bad:
    """A record, or the rest of a file, that could not be read, and why."""

    place: str
    error: str


Item = Text | Row | Bad


def shown(value: object) -> str:
    """A found value as an error shows it: its start, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
