"""Which dates a backfill takes in, in which steps, and which of them are in already; reads no text."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from flows.recipe import Recipe
from flows.watched import Seen, read_seen
from model.settings import arrange_form
from tasks.mechanism.progress import format_count
from tasks.mechanism.store import Store
from tasks.text.dated import DatedAddress, DateRange, Every, chunks, missing, parse_dated, ranges_of
from tasks.text.source import DatedFile, list_dated, source_of_files


class Dates(BaseModel):
    """Which dates to take in, and how many at a time."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=arrange_form)

    first: date | None = Field(None, description="First date; empty: the earliest that the corpus has.")
    last: date | None = Field(None, description="Last date; empty: the latest that the corpus has.")
    every: Every = Field("day", description="What becomes one increment: a dated folder, or all of a week or month.")


@dataclass(frozen=True)
class Step:
    """Dates that are taken in together, by one run."""

    days: tuple[date, ...]
    files: int
    bytes: int
    taken_in: bool

    @property
    def name(self) -> str:
        """`2026-01-31`, or the first and last of several."""
        return str(DateRange(self.days[0], self.days[-1]))


@dataclass(frozen=True)
class BackfillPlan:
    """The steps in order, and the dates without a folder; `address` has the dates that were asked for."""

    address: DatedAddress
    steps: tuple[Step, ...]
    missing: tuple[DateRange, ...]

    @property
    def last(self) -> date:
        """The last date that is taken in."""
        return self.steps[-1].days[-1]

    @property
    def to_do(self) -> list[Step]:
        """The steps that are not in yet."""
        return [step for step in self.steps if not step.taken_in]


def plan_backfill(store: Store, recipe: Recipe, dates: Dates) -> BackfillPlan:
    """Look at names and sizes of files, and at the content of those whose names were seen before.

    Raises:
        ValueError: the corpus has no date in its address, or no dated folder lies within the dates.
    """
    address = _wanted(recipe, dates)
    listed = list_dated(dated_corpus(recipe).undated, store.home / "sources")
    files = [file for file in listed if address.includes(file.day)]
    if not files:
        raise ValueError(_nothing_found(address, listed))
    by_day: dict[date, list[DatedFile]] = {}
    for file in files:
        by_day.setdefault(file.day, []).append(file)
    done = _days_taken_in(store, read_seen(store, recipe), by_day)
    steps = [
        Step(
            days,
            sum(len(by_day[day]) for day in days),
            sum(file.bytes for day in days for file in by_day[day]),
            done.issuperset(days),
        )
        for days in chunks(by_day, dates.every)
    ]
    return BackfillPlan(address, tuple(steps), missing(address, sorted(by_day)))


def dated_corpus(recipe: Recipe) -> DatedAddress:
    """The address of the recipe's corpus.

    Raises:
        ValueError: it has no date in it.
    """
    address = parse_dated(recipe.corpus)
    if address is None:
        raise ValueError(
            f"A backfill takes in dated folders in their order, and the corpus {recipe.corpus} says nothing of dates. "
            "Write {date} in their place: crawl/{date} for folders such as crawl/2026-01-31, crawl/{date:%Y/%m/%d} for "
            "crawl/2026/01/31, crawl/{date}.jsonl.gz for a file a day."
        )
    return address


def _wanted(recipe: Recipe, dates: Dates) -> DatedAddress:
    address = dated_corpus(recipe)
    asked = DateRange(dates.first or date.min, dates.last or date.max)
    if asked.last < asked.first:
        raise ValueError(
            f"The range of dates is empty: its first date is {asked.first} and its last, {asked.last}, lies before it."
        )
    wanted = address.clip(asked)
    if not wanted.ranges:
        raise ValueError(f"The range of dates is empty: the corpus {address} has no date in {asked}.")
    return wanted


def _nothing_found(address: DatedAddress, listed: list[DatedFile]) -> str:
    days = sorted({file.day for file in listed})
    example = f"{address.root.rstrip('/')}/{address.folder(date(2026, 1, 31))}"
    found = (
        f"The dates there are {days[0]} to {days[-1]} ({len(days)} with files)."
        if days
        else f"No file that can be read lies under a name such as {example}."
    )
    return f"{address}: there is no text of these dates. {found} Check the corpus, --from and --to."


def _days_taken_in(store: Store, seen: Seen, by_day: dict[date, list[DatedFile]]) -> set[date]:
    """The dates all of whose files were seen with this content. One that has a new name need not be read to tell."""
    known = {
        day: files
        for day, files in by_day.items()
        if all(file.name in seen.corpus_files and file.path.exists() for file in files)
    }
    named = [(file.name, file.path) for files in known.values() for file in files]
    source = source_of_files(named, store.home / "sources")
    same = {file.name for file in source.files if seen.corpus_files[file.name] == file.sha256}
    return {day for day, files in known.items() if all(file.name in same for file in files)}


def corpus_as_of(store: Store, recipe: Recipe, last: date) -> DatedAddress:
    """The corpus once all its dates up to `last` are in: those, and whatever was taken in before.

    So a date is never given up for another: a backfill of dates before those that were seen adds to them.
    """
    wanted = dated_corpus(recipe)
    existing = {file.day for file in list_dated(wanted.undated, store.home / "sources")}
    seen = seen_days(read_seen(store, recipe), wanted)
    chosen = {day for day in existing if day in seen or (wanted.includes(day) and day <= last)}
    return replace(wanted, ranges=ranges_of(chosen, existing))


def seen_days(seen: Seen, address: DatedAddress) -> set[date]:
    """The dates of which anything was taken in."""
    days = (address.day_of(name) for name in seen.corpus_files)
    return {day for day in days if day}


def address_from_here(address: DatedAddress) -> str:
    """The corpus for a schedule: the same dates, and whatever comes after them."""
    *earlier, latest = address.ranges
    return str(replace(address, ranges=(*earlier, DateRange(latest.first))))


def plan_table(plan: BackfillPlan) -> Table:
    """The plan for a terminal."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("dates", "folders", "files", "size", ""):
        table.add_column(column, justify="left" if column in ("dates", "") else "right")
    for step in plan.steps:
        status = "[green]taken in[/green]" if step.taken_in else "[yellow]to do[/yellow]"
        table.add_row(step.name, str(len(step.days)), str(step.files), f"{format_count(step.bytes)}B", status)
    return table


def missing_line(ranges: Iterable[object]) -> str:
    """What is said of dates without a folder; empty where there are none."""
    named = ", ".join(map(str, ranges))
    return f"No text of: {named}." if named else ""


def plan_json(plan: BackfillPlan) -> dict[str, Any]:
    """The plan with stable keys, for `--json`."""
    steps = [
        {
            "dates": step.name,
            "folders": len(step.days),
            "files": step.files,
            "bytes": step.bytes,
            "taken_in": step.taken_in,
        }
        for step in plan.steps
    ]
    return {"steps": steps, "missing": [str(dates) for dates in plan.missing]}
