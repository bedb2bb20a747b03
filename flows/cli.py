"""`bessemer <verb>`: parse, call, print; a mistake of the user ends in one paragraph, never in a stack trace."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.recipe import Plan, load_plan, preset_names
from tasks.execution import NO_TRACKING
from tasks.progress import console, format_seconds
from tasks.store import Store

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the `bessemer` command."""
    # Threads that wait for each other must sleep, not spin, where others work too: 3 times faster on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = build_parser().parse_args(arguments)
    try:
        code = options.verb(options)
    except ValueError as error:
        if options.debug:
            raise
        console.print(f"\n[bold red]bessemer {options.verb_name}[/bold red]: ", end="")
        console.print(str(error), markup=False)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        console.print("\nStopped. What was built is kept; the same command goes on from the last checkpoint.")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code or 0)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="bessemer", description="Raw text in, a chat model out.")
    verbs = parser.add_subparsers(title="verbs", required=True, dest="verb_name", metavar="VERB")

    run = _add_verb(verbs, "run", _run, "run the pipeline from text to a quantized chat model")
    _add_recipe_options(run)
    run.add_argument("--in-process", action="store_true", help="run without Prefect; the graph is the same")
    run.add_argument("--no-tracking", action="store_true", help="do not record the run in MLflow")

    plan = _add_verb(verbs, "plan", _plan, "say what would run, why and how long; build nothing")
    _add_recipe_options(plan)

    show = _add_verb(verbs, "show", _show, "show the summary of a run")
    show.add_argument("run", nargs="?", default="", help="a run's id or its beginning; the latest if left out")

    chat = _add_verb(verbs, "chat", _chat, "talk to a model")
    chat.add_argument(
        "--model", default="", help="base, sft, dpo, int8 or fp4 of a run, or a model folder; default int8"
    )
    chat.add_argument("--run", default="", help="the run whose model it is; default: the champion, else the latest run")
    chat.add_argument("--message", default="", help="ask this and leave, instead of a conversation")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 always takes the likeliest token (default)")
    chat.add_argument("--max-tokens", type=int, default=200, help="longest answer, in tokens")

    up = _add_verb(verbs, "up", _up, "start Prefect's and MLflow's dashboards and a worker")
    up.add_argument("--prefect-port", type=int, default=4200, help="port of the Prefect server")
    up.add_argument("--mlflow-port", type=int, default=5000, help="port of the MLflow server")

    verify = _add_verb(verbs, "verify", _verify, "build a run again in an empty store and compare the digests")
    verify.add_argument("run", nargs="?", default="", help="a run's id or its beginning; the latest if left out")

    gc = _add_verb(verbs, "gc", _gc, "remove what no kept run and no champion needs")
    gc.add_argument("--keep", type=int, default=5, help="how many of the latest runs to keep")
    gc.add_argument("--dry-run", action="store_true", help="say what would be removed")
    return parser


def _add_verb(
    verbs: Any, name: str, verb: Callable[[argparse.Namespace], int | None], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
    parser.set_defaults(verb=verb)
    home = os.environ.get("BESSEMER_HOME", ".bessemer")
    parser.add_argument("--home", type=Path, default=Path(home), help="folder of all state (BESSEMER_HOME)")
    parser.add_argument("--json", action="store_true", help="print JSON with stable keys (docs/cli.md)")
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    return parser


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="?", default="demo", help=f"a preset ({', '.join(preset_names())}) or a YAML file; default demo"
    )
    parser.add_argument("--corpus", default="", help="text to learn from: folder, file, glob or hub data set id")
    parser.add_argument("--sft", default="", help="conversations: OpenAI messages, Alpaca or ShareGPT layout")
    parser.add_argument("--preferences", default="", help="pairs: prompt, chosen and rejected as text or messages")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. dpo.beta=0.2", dest="settings"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that share the data stages")
    parser.add_argument("--processes", type=int, default=0, help="training processes, one per GPU")
    parser.add_argument("--strategy", default="", choices=["", "ddp", "fsdp2", "deepspeed"], help="how they share")


def read_plan(options: argparse.Namespace) -> Plan:
    """The recipe and execution that the command line asks for."""
    recipe = {"corpus": options.corpus, "sft_data": options.sft, "preference_data": options.preferences}
    execution = {"workers": options.workers, "processes": options.processes, "strategy": options.strategy}
    if getattr(options, "no_tracking", False):
        execution["tracking_uri"] = NO_TRACKING
    sections: dict[str, Any] = {name: value for name, value in recipe.items() if value}
    sections["execution"] = {name: value for name, value in execution.items() if value} | {"home": options.home}
    return load_plan(options.recipe, options.settings, sections)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _run(options: argparse.Namespace) -> None:
    from flows.summary import print_summary, summarise, summary_json

    plan = read_plan(options)
    if options.in_process:
        from flows.run import execute
        from tasks.track import open_tracker

        record = execute(plan.recipe, plan.execution, open_tracker(plan.execution))
    else:
        from flows.start import run_with_prefect

        record = run_with_prefect(plan.recipe, plan.execution)
    summary = summarise(Store(options.home), record)
    if options.json:
        _print_json(summary_json(summary))
    else:
        print_summary(summary)


def _plan(options: argparse.Namespace) -> None:
    from flows.plan import make_plan, plan_json, plan_table, plan_totals

    plan = read_plan(options)
    rows = make_plan(plan.recipe, plan.execution)
    if options.json:
        _print_json(plan_json(rows))
        return
    from rich.console import Console

    output = Console(soft_wrap=True, highlight=False)
    output.print(plan_table(rows))
    whole = plan_totals(rows)
    if whole:
        output.print(
            f"\nAbout {format_seconds(whole.seconds)} ({format_seconds(whole.low)} - {format_seconds(whole.high)})."
        )


def _show(options: argparse.Namespace) -> None:
    from flows.summary import print_summary, summarise, summary_json
    from tasks.runs import find_run

    store = Store(options.home)
    summary = summarise(store, find_run(store, options.run))
    if options.json:
        _print_json(summary_json(summary))
    else:
        print_summary(summary)


def _chat(options: argparse.Namespace) -> None:
    from flows.chat import hold_conversation, model_folder

    folder = model_folder(Store(options.home), options.model, options.run)
    hold_conversation(folder, options.message, options.temperature, options.max_tokens)


def _up(options: argparse.Namespace) -> None:
    from flows.up import serve

    serve(options.home, options.prefect_port, options.mlflow_port)


def _verify(options: argparse.Namespace) -> int:
    from flows.verify import verify_run
    from tasks.execution import Execution
    from tasks.runs import find_run

    record = find_run(Store(options.home), options.run)
    comparisons = verify_run(record, Execution(home=options.home))
    equal = all(comparison.equal for comparison in comparisons)
    if options.json:
        stages = [{**vars(comparison), "equal": comparison.equal} for comparison in comparisons]
        _print_json({"run_id": record.run_id, "equal": equal, "stages": stages})
        return 0 if equal else 1
    for comparison in comparisons:
        verdict = "equal" if comparison.equal else f"DIFFERS: rebuilt as {comparison.rebuilt[:12]}"
        print(f"{comparison.label:<18} {comparison.recorded[:12]}  {verdict}")
    return 0 if equal else 1


def _gc(options: argparse.Namespace) -> None:
    from flows.gc import collect, find_garbage

    store = Store(options.home)
    garbage = find_garbage(store, options.keep)
    if not options.dry_run:
        collect(store, garbage)
    figures = {
        "runs": len(garbage.runs),
        "manifests": len(garbage.manifests),
        "objects": len(garbage.objects),
        "bytes": garbage.bytes,
        "removed": not options.dry_run,
    }
    if options.json:
        _print_json(figures)
        return
    verb = "Would remove" if options.dry_run else "Removed"
    console.print(
        f"{verb} {figures['runs']} runs, {figures['manifests']} manifests and {figures['objects']} artifacts: "
        f"{garbage.bytes / 1e6:.1f} MB."
    )


if __name__ == "__main__":
    main()
