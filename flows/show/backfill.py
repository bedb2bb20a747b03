"""What came of a backfill: a row for each date that was taken in, for the terminal, Prefect's page and programs."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from flows.backfill_plan import BackfillPlan, address_from_here, corpus_as_of, missing_line
from flows.recipe import Recipe
from flows.show.news import News
from tasks.mechanism.progress import format_count, format_seconds
from tasks.mechanism.store import Store

COLUMNS = ("dates", "new documents", "kept of them", "new tokens", "outcome", "verdict", "took")


class Backfilled(BaseModel):
    """What came of a backfill, so far.

    passed_over: dates that were in already
    taken_in: what came of each of the others
    missing: dates without a folder
    schedule_corpus: the corpus for a schedule that goes on from here; empty while dates are left to do
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    passed_over: list[str]
    taken_in: dict[str, News]
    missing: list[str]
    schedule_corpus: str


class BackfillStopped(ValueError):
    """A date could not be taken in; `so_far` is what came of those before it."""

    def __init__(self, message: str, so_far: Backfilled) -> None:
        super().__init__(message)
        self.so_far = so_far


def so_far(store: Store, recipe: Recipe, plan: BackfillPlan, taken_in: Mapping[str, News]) -> Backfilled:
    """What came of a plan of which these steps were taken in since it was made."""
    all_in = len(taken_in) == len(plan.to_do)
    reached = corpus_as_of(store, recipe.model_copy(update={"corpus": str(plan.address)}), plan.last)
    return Backfilled(
        passed_over=[step.name for step in plan.steps if step.taken_in],
        taken_in=dict(taken_in),
        missing=[str(dates) for dates in plan.missing],
        schedule_corpus=address_from_here(reached) if all_in else "",
    )


def result_rows(backfilled: Backfilled) -> list[tuple[str, ...]]:
    """A row for each date that was taken in, in the order of COLUMNS."""
    return [
        (
            name,
            format_count(news.new_documents),
            format_count(news.new_documents_kept),
            format_count(news.new_tokens),
            news.outcome,
            news.verdict,
            format_seconds(news.seconds),
        )
        for name, news in backfilled.taken_in.items()
    ]


def closing_lines(backfilled: Backfilled) -> list[str]:
    """What else there is to say."""
    passed_over = f"In already: {len(backfilled.passed_over)}." if backfilled.passed_over else ""
    on = f"To go on by the schedule, give it the corpus {backfilled.schedule_corpus}" * bool(backfilled.schedule_corpus)
    return [line for line in (passed_over, missing_line(backfilled.missing), on) if line]


def result_table(backfilled: Backfilled) -> Table:
    """What came of each date, for a terminal."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("dates", "outcome", "verdict") else "right")
    for row in result_rows(backfilled):
        table.add_row(*row)
    return table


def backfill_markdown(backfilled: Backfilled) -> str:
    """The same for Prefect's page."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *result_rows(backfilled)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n" + "\n\n".join(closing_lines(backfilled)) + "\n"


def backfill_json(backfilled: Backfilled) -> dict[str, Any]:
    """What came of it with stable keys, for `--json`."""
    figures = backfilled.model_dump(mode="json")
    figures["taken_in"] = [{"dates": name, **news} for name, news in figures["taken_in"].items()]
    return figures
