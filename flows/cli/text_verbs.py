"""The verbs for text that goes on arriving: by date from the past, on a schedule, as soon as it is there."""

import argparse
from typing import TYPE_CHECKING, Any

from flows.cli.verbs import print_json, read_plan
from flows.recipe import Plan
from tasks.mechanism.progress import console
from tasks.mechanism.store import Store

if TYPE_CHECKING:
    from flows.backfill_plan import BackfillPlan, Dates
    from flows.show.backfill import Backfilled


def backfill(options: argparse.Namespace) -> None:
    """Take in dated folders, or say which."""
    from flows.backfill_plan import Dates, plan_backfill, plan_json
    from flows.show.backfill import so_far
    from tasks.text.dated import parse_day

    plan = read_plan(options)
    store = Store(plan.execution.home)
    first, last = (parse_day(text) if text else None for text in (options.first, options.last))
    dates = Dates(first=first, last=last, every=options.every)
    found = plan_backfill(store, plan.recipe, dates)
    if options.plan and options.json:
        print_json(plan_json(found))
    elif options.plan:
        _print_backfill_plan(found)
    elif found.to_do:
        _take_in(options, plan, dates)
    else:  # without a server, which would take longer to start than this takes
        _print_backfilled(options, so_far(store, plan.recipe, found, {}))


def _print_backfill_plan(found: "BackfillPlan") -> None:
    from flows.backfill_plan import missing_line, plan_table
    from flows.show.summary import wide_console

    output = wide_console()
    output.print(plan_table(found))
    output.print(f"\n{len(found.to_do)} of {len(found.steps)} to do. {missing_line(found.missing)}".rstrip())


def _take_in(options: argparse.Namespace, plan: Plan, dates: "Dates") -> None:
    from flows.servers.start import backfill_with_prefect
    from flows.show.backfill import BackfillStopped

    try:
        taken_in = backfill_with_prefect(plan.recipe, dates, _watch(options), plan.execution)
        _print_backfilled(options, taken_in)
    except BackfillStopped as stopped:
        _print_backfilled(options, stopped.so_far)
        raise


def _print_backfilled(options: argparse.Namespace, backfilled: "Backfilled") -> None:
    from flows.show.backfill import backfill_json, closing_lines, result_table
    from flows.show.summary import wide_console

    if options.json:
        print_json(backfill_json(backfilled))
        return
    output = wide_console()
    if backfilled.taken_in:
        output.print(result_table(backfilled))
    for line in closing_lines(backfilled):
        output.print(line, markup=False)


def _watch(options: argparse.Namespace) -> dict[str, Any]:
    """What to do about new text, where the command line says so."""
    chosen = {name: getattr(options, name) for name in ("retrain", "new_share", "promote")}
    return {name: value for name, value in chosen.items() if value not in ("", None)}


def schedule(options: argparse.Namespace) -> None:
    """Look for new text on a schedule, or no longer."""
    from flows.servers.schedule import schedule, unschedule

    plan = read_plan(options)
    if options.off:
        unschedule(plan.execution.home, plan.recipe.name)
        if options.json:
            print_json({"deployment": f"ingest/{plan.recipe.name}", "off": True})
        else:
            console.print(f"ingest/{plan.recipe.name} is gone: nobody looks for new text any more.", markup=False)
        return
    made = schedule(plan, _watch(options), options.cron, options.timezone)
    if options.json:
        print_json({"deployment": made.deployment, "page": made.page, "next": made.next_look.isoformat()})
        return
    console.print(f"{made.deployment} looks for new text in {plan.recipe.corpus}.", markup=False)
    console.print(f"Next on {made.next_look:%Y-%m-%d %H:%M %Z}, as long as `bessemer up` runs. Its page, where you can "
                  f"also start a look at once: {made.page}", markup=False)  # fmt: skip


def notify(options: argparse.Namespace) -> None:
    """Have the deployment `ingest/on-arrival` look at new text."""
    from flows.servers.notify import EVENT, notify

    notify(options.home, options.path)
    if options.json:
        print_json({"event": EVENT, "path": str(options.path.resolve())})
    else:
        console.print(f"Told Prefect that {options.path} has arrived.", markup=False)
