"""Corpora in dated folders: an address with a date in it, and which folders it stands for.

`crawl/{date}` are all folders such as `crawl/2026-01-31`, and `crawl/{date:%Y/%m/%d}` all such as `crawl/2026/01/31`.
Dates in the place of the word are those alone: `crawl/{2026-01-01..2026-01-31}`, `crawl/{2026-01-01..}`. The dates are
no part of what identifies the text: a file is named as if all of `crawl` had been asked for.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property
from itertools import groupby
from typing import Literal

Every = Literal["day", "week", "month"]

ISO_FORMAT = "%Y-%m-%d"
_WIDTHS = {"%Y": 4, "%m": 2, "%d": 2}
_WORD = "date"
_BRACES = re.compile(r"(?P<head>[^{}]*)\{(?P<dates>[^{}:]*)(?::(?P<format>[^{}]*))?\}(?P<tail>[^{}]*)")
# Braces around anything else are part of a name.
_MENTIONS_DATES = re.compile(rf"\{{({_WORD}\b|\d{{4}}-|\.\.)")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_EXPECTED = (
    "Expected one pair of braces around `date` or dates, and perhaps how folders write it: crawl/{date}, "
    "crawl/{date:%Y/%m/%d}, crawl/{2026-01-01..2026-01-31} or crawl/{2026-01-01..:%Y/%m/%d}."
)


@dataclass(frozen=True, order=True)
class DateRange:
    """The days from `first` to `last`, both of them within; open ends reach to the end of the calendar."""

    first: date = date.min
    last: date = date.max

    def __contains__(self, day: date) -> bool:
        return self.first <= day <= self.last

    def __str__(self) -> str:
        if self.first == self.last:
            return self.first.isoformat()
        first = "" if self.first == date.min else self.first.isoformat()
        last = "" if self.last == date.max else self.last.isoformat()
        return f"{first}..{last}"


ALWAYS = DateRange()


@dataclass(frozen=True)
class DatedAddress:
    """An address with a date in it.

    head: what stands before the date, with the folder that all file names are relative to
    format: how folders write the date
    tail: what stands after it, such as `.jsonl.gz` or `/text`
    ranges: the dates that belong, ascending
    """

    head: str
    format: str = ISO_FORMAT
    tail: str = ""
    ranges: tuple[DateRange, ...] = (ALWAYS,)

    def __str__(self) -> str:
        dates = _WORD if self.ranges == (ALWAYS,) else ",".join(map(str, self.ranges))
        written = "" if self.format == ISO_FORMAT else f":{self.format}"
        return f"{self.head}{{{dates}{written}}}{self.tail}"

    @property
    def root(self) -> str:
        """The folder that file names are relative to."""
        folder, slash, _ = self.head.rpartition("/")
        # `/{date}` lies in /, `{date}` in the working folder.
        return folder or slash or "."

    @property
    def undated(self) -> "DatedAddress":
        """The same with all dates: what the corpus is called whatever was taken in so far."""
        return replace(self, ranges=(ALWAYS,))

    @property
    def unit(self) -> Every | Literal["year"]:
        """What one folder holds the text of."""
        return "day" if "%d" in self.format else "month" if "%m" in self.format else "year"

    def includes(self, day: date) -> bool:
        """Whether this date belongs."""
        return any(day in dates for dates in self.ranges)

    def folder(self, day: date) -> str:
        """The name of a date's folder, or file, below the root."""
        parts = {"%Y": f"{day.year:04}", "%m": f"{day.month:02}", "%d": f"{day.day:02}"}
        written = "".join(parts.get(part, part) for part in _split_format(self.format))
        return f"{self.head.rpartition('/')[2]}{written}{self.tail}"

    def day_of(self, name: str) -> date | None:
        """The date of the file with this name below the root, whether or not it belongs; None where it has none.

        A folder of a month or a year counts as its first day.
        """
        found = self._pattern.match(name)
        if found is None:
            return None
        numbers = {key: int(value) for key, value in found.groupdict().items()}
        try:
            return date(numbers["Y"], numbers.get("m", 1), numbers.get("d", 1))
        except ValueError:  # 2026-02-30
            return None

    def includes_file(self, name: str) -> bool:
        """Whether the file with this name below the root belongs."""
        day = self.day_of(name)
        return day is not None and self.includes(day)

    def clip(self, dates: DateRange) -> "DatedAddress":
        """The dates that are in `dates` too."""
        clipped = [DateRange(max(r.first, dates.first), min(r.last, dates.last)) for r in self.ranges]
        return replace(self, ranges=tuple(r for r in clipped if r.first <= r.last))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        written = ""
        for part in _split_format(self.format):
            letter = part[1:]
            if part not in _WIDTHS:
                written += re.escape(part)
            elif f"(?P<{letter}>" in written:  # 2026/01/2026-01-31: both must say the same
                written += f"(?P={letter})"
            else:
                written += f"(?P<{letter}>[0-9]{{{_WIDTHS[part]}}})"  # not \d, which takes the digits of other scripts
        before, after = re.escape(self.head.rpartition("/")[2]), re.escape(self.tail)
        # \Z, as $ would also match before a final newline, which a file name may have.
        return re.compile(f"{before}{written}{after}(?:/|\\Z)")


def _split_format(format: str) -> list[str]:
    """`%Y/%m` -> ["%Y", "/", "%m"]."""
    return [part for part in re.split(r"(%.?)", format) if part]


def parse_dated(spec: str) -> DatedAddress | None:
    """Read an address with a date in it; None where it has none.

    Raises:
        ValueError: it mentions dates in a form that means nothing.
    """
    if not _MENTIONS_DATES.search(spec):
        return None
    found = _BRACES.fullmatch(spec)
    if found is None:
        raise ValueError(f"{spec}: this address mentions dates, but not in a form that can be read. {_EXPECTED}")
    head, tail, format = found["head"], found["tail"], found["format"]
    if any(character in f"{head}{tail}{format or ''}" for character in "*?["):
        raise ValueError(
            f"{spec}: wildcards and dates do not go together in one address. Leave the wildcards out: everything in a "
            "date's folder that can be read is taken in."
        )
    if "://" in head and "/" not in head.partition("://")[2]:
        raise ValueError(f"{spec}: expected a folder, or bucket, before the date, such as s3://bucket/{{date}}.")
    format = ISO_FORMAT if format is None else format
    _check_format(spec, format)
    return DatedAddress(head, format, tail, _parse_ranges(spec, found["dates"]))


def _check_format(spec: str, format: str) -> None:
    codes = [part for part in _split_format(format) if part.startswith("%")]
    unknown = [code for code in codes if code not in _WIDTHS]
    if unknown or "%Y" not in codes or ("%d" in codes and "%m" not in codes):
        raise ValueError(
            f"{spec}: the date is written as {format!r}. Expected %Y for the year and perhaps %m for the month and %d "
            "for the day, such as %Y/%m/%d."
        )


def _parse_ranges(spec: str, dates: str) -> tuple[DateRange, ...]:
    if dates == _WORD:
        return (ALWAYS,)
    ranges = []
    for text in dates.split(","):
        first, dots, last = text.partition("..")
        if not first and not last:
            raise ValueError(f"{spec}: {text!r} is no date and no range of dates. {_EXPECTED}")
        start = parse_day(first) if first else date.min
        end = (parse_day(last) if last else date.max) if dots else start
        if end < start:
            raise ValueError(f"{spec}: {text} ends before it begins. Expected the earlier date first.")
        ranges.append(DateRange(start, end))
    return tuple(sorted(ranges))


def parse_day(text: str) -> date:
    """`2026-01-31`.

    Raises:
        ValueError: it is written otherwise, or there is no such day.
    """
    try:
        # fromisoformat alone takes 20260131 and 2026-W05-6 too.
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a date. Expected year, month and day, such as 2026-01-31.")


def chunks(days: Iterable[date], every: Every) -> list[tuple[date, ...]]:
    """The dates in order, those of one day, ISO week or month together."""

    def chunk(day: date) -> tuple[int, ...]:
        if every == "week":
            # With the ISO year: 1 January may lie in the last week of the year before.
            return day.isocalendar()[:2]
        return (day.year, day.month) if every == "month" else (day.toordinal(),)

    return [tuple(group) for _, group in groupby(sorted(days), chunk)]


def ranges_of(chosen: Iterable[date], existing: Iterable[date]) -> tuple[DateRange, ...]:
    """The fewest ranges that hold all chosen dates and no other one that exists."""
    wanted = set(chosen)
    runs = groupby(sorted({*wanted, *existing}), lambda day: day in wanted)
    found = [list(days) for is_chosen, days in runs if is_chosen]
    return tuple(DateRange(days[0], days[-1]) for days in found)


def missing(address: DatedAddress, existing: Sequence[date]) -> tuple[DateRange, ...]:
    """Dates of the address that have no folder, between the first and the last date that it names or that exists."""
    within = sorted(day for day in existing if address.includes(day))
    if not within:
        return ()
    absent: set[date] = set()
    for dates in address.ranges:
        # An open end reaches to the end of the calendar: what lies outside the folders that exist is not missing.
        first = within[0] if dates.first == date.min else dates.first
        last = within[-1] if dates.last == date.max else dates.last
        absent |= {day for day in _calendar(address, first, last) if address.includes(day)} - set(within)
    return ranges_of(absent, within)


def _calendar(address: DatedAddress, first: date, last: date) -> Iterator[date]:
    """Every date from `first` to `last` that could have a folder."""
    day = first
    while day <= last:
        starts_unit = address.unit == "day" or (day.day == 1 and (address.unit == "month" or day.month == 1))
        if starts_unit:
            yield day
        if day == date.max:  # a day more would raise
            return
        day += timedelta(days=1)
