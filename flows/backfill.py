"""Take in a past range of dated folders, one date after another, each as the increment that a schedule would have made.

What was seen is remembered by content, as it is for the schedule: dates that are in are passed over, a date that failed
stops the backfill, and the same call goes on from it.
"""

from datetime import date
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from flows.backfill_plan import Dates, corpus_as_of, missing_line, plan_backfill
from flows.pipeline import artifact_key
from flows.recipe import Recipe
from flows.show.backfill import Backfilled, BackfillStopped, backfill_markdown, so_far
from flows.show.news import News
from flows.watch import as_state, look
from flows.watched import WatchConfig
from tasks.mechanism.execution import Execution
from tasks.mechanism.progress import console
from tasks.mechanism.store import Store


@flow(name="backfill", log_prints=False)
def backfill(
    recipe: Recipe = Recipe(),  # noqa: B008
    dates: Dates = Dates(),  # noqa: B008
    watch: WatchConfig = WatchConfig(),  # noqa: B008
    execution: Execution = Execution(),  # noqa: B008
) -> Backfilled:
    """Take in dated folders one after another, oldest first, and train where the policy says so.

    Args:
        recipe: What to build. The corpus has a date in its address, such as crawl/{date}.
        dates: Which dates to take in, and how many at a time.
        watch: What to do about each date's new text.
        execution: Where and how fast. Nothing here changes a result, but for rounding in training.
    """
    logger = get_run_logger()
    store = Store(execution.home)
    plan = plan_backfill(store, recipe, dates)
    recipe = recipe.model_copy(update={"corpus": str(plan.address)})
    taken_in: dict[str, News] = {}
    if plan.missing:
        logger.warning("%s", missing_line(plan.missing))
    try:
        for number, step in enumerate(plan.to_do, 1):
            console.print(f"\n[bold]{step.name}[/bold], {number} of {len(plan.to_do)}")
            named = take_in.with_options(flow_run_name=f"{recipe.name} {step.name}")
            state: State[Any] = named(recipe, step.days[-1], watch, execution, return_state=True)
            taken_in[step.name] = state.result()
            news = taken_in[step.name]
            logger.info("%s: %s%s", step.name, news.outcome, f", by run {news.run_id}" if news.run_id else "")
    except ValueError as error:
        done = len(plan.steps) - len(plan.to_do) + len(taken_in)
        raise BackfillStopped(
            f"It stopped at {step.name}, with {done} of {len(plan.steps)} increments in; the same call goes on from "
            f"there. {error}",
            so_far(store, recipe, plan, taken_in),
        ) from error
    except Exception as error:
        error.add_note(f"The backfill stopped at {step.name}; the same call goes on from there.")
        raise
    finally:
        shown = backfill_markdown(so_far(store, recipe, plan, taken_in))
        create_markdown_artifact(shown, key=artifact_key("backfill", recipe.name), description="What came of each date")
    return so_far(store, recipe, plan, taken_in)


@flow(name="backfill-date", log_prints=False)
def take_in(recipe: Recipe, last: date, watch: WatchConfig, execution: Execution) -> State[News]:
    """Look at the corpus as it is once all dates up to `last` are in.

    Args:
        recipe: What to build; its corpus has all dates that the backfill takes in.
        last: The date to take in, with those before it that are not in yet.
        watch: What to do about new text.
        execution: Where and how fast. Nothing here changes a result, but for rounding in training.
    """
    store = Store(execution.home)
    with store.lock("watch", recipe.name):  # a schedule may have taken in more while we waited
        as_of = recipe.model_copy(update={"corpus": str(corpus_as_of(store, recipe, last))})
        return as_state(as_of, look(as_of, watch, execution))
