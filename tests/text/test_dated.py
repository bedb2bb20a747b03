"""Addresses with dates: what they stand for, that they survive being written, and that nonsense is refused."""

from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.text.dated import ALWAYS, DatedAddress, DateRange, chunks, missing, parse_dated, parse_day, ranges_of
from tasks.text.source import list_dated, resolve_source

DAYS = st.dates(date(1000, 1, 1), date(9999, 12, 31))
NEAR_DAYS = st.dates(date(2023, 12, 20), date(2024, 3, 10))
LITERALS = st.text("abc-_./= dtY0", max_size=5)
FORMATS = st.sampled_from(["%Y-%m-%d", "%Y/%m/%d", "%Y%m%d", "%Y/%m/%Y-%m-%d", "y=%Y/m=%m/d=%d", "%d.%m.%Y"])
RANGES = st.one_of(
    st.just((ALWAYS,)),
    st.lists(
        st.one_of(
            st.tuples(DAYS, DAYS).map(lambda days: DateRange(min(days), max(days))),
            DAYS.map(lambda day: DateRange(first=day)),
            DAYS.map(lambda day: DateRange(last=day)),
        ),
        min_size=1,
        max_size=3,
    ).map(lambda ranges: tuple(sorted(ranges))),
)
ADDRESSES = st.builds(
    DatedAddress,
    head=st.tuples(st.sampled_from(["", "crawl/", "/data/a/", "s3://bucket/", "dt="]), LITERALS).map("".join),
    format=FORMATS,
    tail=st.one_of(st.just(""), st.just(".jsonl.gz"), LITERALS),
    ranges=RANGES,
)


@given(ADDRESSES)
def test_an_address_is_read_as_it_is_written(address: DatedAddress) -> None:
    assert parse_dated(str(address)) == address


@given(ADDRESSES, DAYS)
def test_a_folder_tells_its_date(address: DatedAddress, day: date) -> None:
    folder = address.folder(day)
    assert address.day_of(folder) == day
    if not folder.endswith("/"):
        assert address.day_of(f"{folder}/deep/a.txt") == day
        assert address.day_of(f"{folder}7/a.txt") is None
    assert address.includes_file(folder) is address.includes(day)
    assert address.includes(day) is any(dates.first <= day <= dates.last for dates in address.ranges)


@given(ADDRESSES, st.text("0123456789-/", max_size=12))
def test_a_name_with_a_date_is_the_folder_of_that_date(address: DatedAddress, name: str) -> None:
    day = address.day_of(name)
    if day:
        assert f"{name}/".startswith(address.folder(day))


@given(ADDRESSES, st.tuples(DAYS, DAYS).map(lambda days: DateRange(min(days), max(days))), DAYS)
def test_clipping_is_intersection(address: DatedAddress, dates: DateRange, day: date) -> None:
    assert address.clip(dates).includes(day) is (address.includes(day) and day in dates)


@given(st.sets(NEAR_DAYS), st.sets(NEAR_DAYS))
def test_ranges_hold_the_chosen_of_what_exists_and_no_other(chosen: set[date], others: set[date]) -> None:
    ranges = ranges_of(chosen, chosen | others)
    assert {day for day in chosen | others if any(day in dates for dates in ranges)} == chosen
    assert all(one.last < other.first for one, other in pairwise(ranges))
    if chosen >= others:
        assert len(ranges) == bool(chosen)


@given(st.sets(NEAR_DAYS), st.sampled_from(["day", "week", "month"]))
def test_chunks_hold_each_date_once_in_order(days: set[date], every: str) -> None:
    found = chunks(days, every)  # type: ignore[arg-type]
    assert [day for chunk in found for day in chunk] == sorted(days)
    of = {"day": date.isoformat, "week": lambda day: day - timedelta(day.weekday()), "month": lambda day: day.month}
    keys = [{of[every](day) for day in chunk} for chunk in found]  # type: ignore[operator]
    assert all(len(key) == 1 for key in keys)
    assert len(set.union(set(), *keys)) == len(keys)


@given(st.sets(NEAR_DAYS, min_size=1), NEAR_DAYS, NEAR_DAYS)
def test_missing_dates_are_all_others_between(existing: set[date], one: date, other: date) -> None:
    dates = DateRange(min(one, other), max(one, other))
    address = DatedAddress("", ranges=(dates,))
    found = missing(address, sorted(existing))
    within = {day for day in existing if day in dates}
    every = {dates.first + timedelta(i) for i in range((dates.last - dates.first).days + 1)}
    assert {day for day in every if any(day in gap for gap in found)} == (every - within if within else set())


def test_missing_months_and_open_ends() -> None:
    monthly = DatedAddress("crawl/", "%Y/%m")
    assert missing(monthly, [date(2025, 11, 1), date(2026, 2, 1)]) == (DateRange(date(2025, 12, 1), date(2026, 1, 1)),)
    assert missing(DatedAddress("", "%Y"), [date(2023, 1, 1), date(2025, 1, 1)]) == (
        DateRange(date(2024, 1, 1), date(2024, 1, 1)),
    )
    assert missing(monthly, []) == ()


@pytest.mark.parametrize("spec", ["crawl", "a/{b}", "s3://bucket/in", "python-docs", "org/name:split", "x/{dates.txt}"])
def test_other_addresses_are_left_alone(spec: str) -> None:
    assert parse_dated(spec) is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("crawl/{2026-1-1..2026-01-31}", "'2026-1-1' is not a date"),
        ("crawl/{2026-02-30}", "'2026-02-30' is not a date"),
        ("crawl/{2026-02-01..2026-01-31}", "ends before it begins"),
        ("crawl/{..}", "is no date and no range"),
        ("crawl/{2026-01-01,}", "is no date and no range"),
        ("crawl/{date}/{date}", "not in a form that can be read"),
        ("crawl/{date", "not in a form that can be read"),
        ("crawl/{date}/*.jsonl", "wildcards and dates"),
        ("crawl/{date:%m-%d}", "Expected %Y for the year"),
        ("crawl/{date:%Y-%d}", "Expected %Y for the year"),
        ("crawl/{date:%Y-%j}", "Expected %Y for the year"),
        ("crawl/{date:}", "Expected %Y for the year"),
        ("crawl/{date from 1 to 2}", "is not a date"),
        ("s3://{date}", "folder, or bucket, before the date"),
    ],
)
def test_nonsense_is_refused_with_its_reason(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_dated(spec)


def test_days() -> None:
    assert parse_day("2024-02-29") == date(2024, 2, 29)
    for text in ("2026-02-29", "20260101", "2026-W01-1", "today", ""):
        with pytest.raises(ValueError, match="Expected year, month and day"):
            parse_day(text)


def make_crawl(folder: Path, format: str = "%Y-%m-%d") -> Path:
    for day in (date(2026, 1, 30), date(2026, 1, 31), date(2026, 2, 2)):
        path = folder / day.strftime(format)
        path.mkdir(parents=True)
        (path / "a.txt").write_text(f"text of {day}")
    (folder / "notes.txt").write_text("of no date")
    (folder / "2026-99-99").mkdir()
    (folder / "2026-99-99" / "a.txt").write_text("of no date")
    return folder


@pytest.mark.parametrize("format", ["%Y-%m-%d", "%Y/%m/%d", "y=%Y/%Y%m%d"])
def test_dated_folders_are_part_of_the_folder(tmp_path: Path, format: str) -> None:
    crawl = make_crawl(tmp_path / "crawl", format)
    whole = {file.name: file.sha256 for file in resolve_source(str(crawl), tmp_path / "cache").files}
    head = f"{crawl}/{{{{{{}}:{format}}}}}"
    dated = resolve_source(head.format("date"), tmp_path / "cache")
    assert {file.name: file.sha256 for file in dated.files}.items() < whole.items()
    assert len(dated.files) == 3
    some = resolve_source(head.format("2026-01-31..2026-02-01,2026-02-02.."), tmp_path / "cache")
    assert some.files == dated.files[1:]


def test_a_file_or_a_folder_within_for_each_date(tmp_path: Path) -> None:
    for name in ("2026-01-01.jsonl", "2026-01-02.jsonl", "2026-01-02.csv"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    named = resolve_source(f"{tmp_path}/{{date}}.jsonl", tmp_path / "cache")
    assert [file.name for file in named.files] == ["2026-01-01.jsonl", "2026-01-02.jsonl"]
    for part in ("text", "raw"):
        (tmp_path / "2026-01-03" / part).mkdir(parents=True)
        (tmp_path / "2026-01-03" / part / "a.txt").write_text("a")
    within = resolve_source(f"{tmp_path}/{{date}}/text", tmp_path / "cache")
    assert [file.name for file in within.files] == ["2026-01-03/text/a.txt"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [("{tmp}/crawl/{{2027-01-01..}}", "no file that can be read"), ("{tmp}/none/{{date}}", "there is no such folder")],
)
def test_dates_without_text_are_said_plainly(tmp_path: Path, spec: str, words: str) -> None:
    make_crawl(tmp_path / "crawl")
    with pytest.raises(ValueError, match=words):
        resolve_source(spec.format(tmp=tmp_path), tmp_path / "cache")


def test_dated_folders_at_an_address_are_copied_when_they_are_wanted(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    days = ("2026/01/30", "2026/01/31", "2026/02/02")
    system.pipe({f"/dated/crawl/{day}/a.txt": day.encode() for day in days} | {"/dated/crawl/2026/readme.txt": b"no"})
    address = parse_dated("memory://dated/crawl/{2026-01-31..:%Y/%m/%d}")
    assert address
    listed = list_dated(address, tmp_path)
    assert [(file.day.isoformat(), file.name, file.bytes) for file in listed] == [
        ("2026-01-31", "2026/01/31/a.txt", 10),
        ("2026-02-02", "2026/02/02/a.txt", 10),
    ]
    assert not any(file.path.exists() for file in listed)
    source = resolve_source(str(address), tmp_path)
    assert [(file.name, file.path) for file in source.files] == [(file.name, file.path) for file in listed]
    assert [file.path.read_text() for file in source.files] == list(days[1:])
