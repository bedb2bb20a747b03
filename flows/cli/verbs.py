"""What each verb of the command line does: read the options, call the function that does it, print."""

import argparse
import json
import secrets
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from flows.recipe import Plan, load_plan
from tasks.mechanism.execution import NO_TRACKING
from tasks.mechanism.progress import console, format_seconds
from tasks.mechanism.runs import artifact_of
from tasks.mechanism.store import Store


def read_plan(options: argparse.Namespace) -> Plan:
    """The recipe and execution that the command line asks for."""
    recipe = {
        "corpus": options.corpus,
        "sft_data": options.sft,
        "preference_data": options.preferences,
        "benchmarks": options.benchmarks,
    }
    names = ("workers", "processes", "strategy", "launcher")
    execution = {name: getattr(options, name) for name in names}
    if getattr(options, "no_tracking", False):
        execution["tracking_uri"] = NO_TRACKING
    sections: dict[str, Any] = {name: value for name, value in recipe.items() if value}
    sections["execution"] = {name: value for name, value in execution.items() if value} | {"home": options.home}
    return load_plan(options.recipe, options.settings, sections)


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def run(options: argparse.Namespace) -> None:
    """Run the pipeline and show its summary."""
    from flows.show.summary import print_summary, summarise, summary_json

    plan = read_plan(options)
    if options.in_process:
        from flows.run import execute
        from flows.show.markdown import report_files
        from tasks.track import open_tracker

        signal.signal(signal.SIGTERM, _interrupt)  # Prefect does as much for its flows
        record = execute(plan.recipe, plan.execution, open_tracker(plan.execution, report_files))
    else:
        from flows.servers.start import run_with_prefect

        record = run_with_prefect(plan.recipe, plan.execution)
    summary = summarise(Store(plan.execution.home), record)
    if options.json:
        print_json(summary_json(summary))
    else:
        print_summary(summary)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Asked to stop: end as Ctrl-C does, with the record closed and a checkpoint left."""
    raise KeyboardInterrupt


def plan(options: argparse.Namespace) -> None:
    """Show what would run."""
    from flows.champion import describe_start
    from flows.plan import make_plan, plan_json, plan_table, plan_totals
    from flows.show.summary import wide_console

    plan = read_plan(options)
    rows = make_plan(plan.recipe, plan.execution)
    start = describe_start(Store(plan.execution.home), plan.recipe)
    if options.json:
        print_json({**plan_json(rows), "start": start})
        return
    output = wide_console()
    output.print(plan_table(rows))
    output.print(f"\nPretraining starts from {start}.")
    whole = plan_totals(rows)
    if whole:
        output.print(
            f"\nAbout {format_seconds(whole.seconds)} ({format_seconds(whole.low)} - {format_seconds(whole.high)})."
        )


def show(options: argparse.Namespace) -> None:
    """Show the summary of a run."""
    from flows.show.summary import print_summary, summarise, summary_json
    from tasks.mechanism.runs import find_run

    store = Store(options.home)
    summary = summarise(store, find_run(store, options.run))
    if options.json:
        print_json(summary_json(summary))
    else:
        print_summary(summary)


def compare(options: argparse.Namespace) -> None:
    """Say what differs between two runs."""
    from flows.champion import find_pair
    from flows.show.compare import compare_runs, comparison_json
    from flows.show.compare_page import render_comparison, render_page
    from flows.show.summary import wide_console

    store = Store(options.home)
    comparison = compare_runs(store, *find_pair(store, options.before, options.after), options.samples)
    if options.html:
        Path(options.html).write_text(render_page(comparison), encoding="utf-8")
    if options.json:
        print_json(comparison_json(comparison))
    elif options.html:
        print(f"Wrote {options.html}: open it in a browser.")
    else:
        wide_console().print(render_comparison(comparison))


def chat(options: argparse.Namespace) -> None:
    """Talk to a model."""
    from flows.champion import model_folder
    from flows.cli.chat import hold_conversation
    from model.decoding.sampling import Sampling

    folder = model_folder(Store(options.home), options.model, options.run, "served")
    sampling = Sampling(
        options.temperature,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=secrets.randbelow(2**32) if options.seed is None else options.seed,
    )
    hold_conversation(folder, options.message, sampling, options.max_tokens)


def up(options: argparse.Namespace) -> None:
    """Serve the dashboards until stopped."""
    from flows.servers.up import serve

    serve(options.home, options.prefect_port, options.mlflow_port, options.overlap)


def verify(options: argparse.Namespace) -> int:
    """Rebuild a run elsewhere; exit code 1 if a digest differs."""
    from flows.verify import verify_run
    from tasks.mechanism.execution import Execution
    from tasks.mechanism.runs import find_run

    record = find_run(Store(options.home), options.run)
    comparisons = verify_run(record, Execution(home=options.home))
    equal = all(comparison.equal for comparison in comparisons)
    if options.json:
        stages = [{**vars(comparison), "equal": comparison.equal} for comparison in comparisons]
        print_json({"run_id": record.run_id, "equal": equal, "stages": stages})
        return 0 if equal else 1
    for comparison in comparisons:
        verdict = "equal" if comparison.equal else f"DIFFERS: rebuilt as {comparison.rebuilt[:12]}"
        print(f"{comparison.label:<18} {comparison.recorded[:12]}  {verdict}")
    for fact in sorted({fact for comparison in comparisons for fact in comparison.elsewhere}):
        print(f"Recorded elsewhere, where bits may be others: {fact}")
    return 0 if equal else 1


def promote(options: argparse.Namespace) -> None:
    """Make a run's models the champion."""
    from flows.champion import promote_run
    from tasks.mechanism.execution import Execution
    from tasks.mechanism.runs import find_run

    record = find_run(Store(options.home), options.run)
    champion = promote_run(record, Execution(home=options.home, tracking_uri=options.tracking_uri))
    if options.json:
        print_json(champion.model_dump(mode="json"))
    else:
        console.print(f"{champion.run_id} is the champion of {record.recipe['name']} now.", markup=False)


def gc(options: argparse.Namespace) -> None:
    """Free the disk."""
    from flows.gc import collect, find_garbage

    store = Store(options.home)
    garbage = find_garbage(store, options.keep)
    if not options.dry_run:
        collect(store, garbage)
    figures = {
        "runs": len(garbage.runs),
        "manifests": len(garbage.manifests),
        "objects": len(garbage.objects),
        "scratch": len(garbage.scratch),
        "memos": len(garbage.memos),
        "index": len(garbage.index),
        "bytes": garbage.bytes,
        "removed": not options.dry_run,
    }
    if options.json:
        print_json(figures)
        return
    verb = "Would remove" if options.dry_run else "Removed"
    console.print(
        f"{verb} {figures['runs']} runs, {figures['manifests']} manifests, {figures['objects']} artifacts, "
        f"{figures['scratch']} unfinished stages, {figures['memos']} results of shards and {figures['index']} entries "
        f"of dedup's index: {garbage.bytes / 1e6:.1f} MB."
    )


def inspect(options: argparse.Namespace) -> None:
    """Show what a data stage dropped and why, and what other thresholds would drop."""
    store = Store(options.home)
    if options.stage == "dedup":
        from tasks.text.inspect.dedup import dedup_report, render_dedup_report

        documents, judged = (artifact_of(store, options.run, label) for label in ("ingest", "dedup"))
        print(render_dedup_report(dedup_report(documents, judged, options.samples, options.samples)))
    else:
        _inspect_filter(store, options)


def _inspect_filter(store: Store, options: argparse.Namespace) -> None:
    from flows.recipe import load_plan
    from tasks.mechanism.runs import find_run
    from tasks.text.inspect.filter import filter_report, render_filter_report, render_what_if, what_if
    from tasks.text.inspect.filter_page import render_filter_page

    recipe = find_run(store, options.run).recipe
    # Any preset would do: all but its filter is thrown away.
    before = load_plan("demo", sections={"filter": recipe["filter"]}).recipe.filter
    documents, judged = (artifact_of(store, options.run, label) for label in ("ingest", "filter"))
    if options.html:
        page = Path(options.html)
        page.write_text(render_filter_page(documents, judged, before), encoding="utf-8")
        print(f"Wrote {page}: open it in a browser and move the thresholds.")
    elif options.settings:
        after = load_plan("demo", options.settings, {"filter": recipe["filter"]}).recipe.filter
        print(render_what_if(what_if(documents, judged, before, after, options.samples)))
    else:
        print(render_filter_report(filter_report(documents, judged, before, options.samples)))


def export(options: argparse.Namespace) -> None:
    """Write a model as a GGUF file, or copy its Hugging Face folder after transformers has agreed with it."""
    from flows.champion import model_folder

    folder = model_folder(Store(options.home), options.model, options.run, "candidate")
    target = Path(options.output)
    if options.format == "hf":
        from tasks.models.export import export_hf

        check = export_hf(folder, target, [{"role": "user", "content": "What is a list?"}])
        print(
            f"Wrote {target}. In transformers its logits differ by at most {check.max_logit_difference:.1e}, "
            f"its greedy answer {'is the same' if check.greedy_equal else 'DIFFERS'}."
        )
    else:
        from tasks.models.export import export_gguf

        export_gguf(folder, target, options.format)
        print(f"Wrote {target} ({target.stat().st_size / 1e6:.2f} MB).")
