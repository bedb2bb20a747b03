"""`bessemer <verb>`: parse, call, print; a mistake of the user ends in one paragraph, never in a stack trace."""

import argparse
import atexit
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.cli import text_verbs, verbs
from flows.cli.arguments import HIGHEST_PORT, MOST, Parser, VerbParser, number, whole
from flows.fields import shorten, shown
from flows.recipe import preset_names
from model.decoding.sampling import CONVERSATION
from model.quantization.formats import GGUF_FILE_TYPES
from tasks.mechanism.progress import console

EXIT_USER_ERROR = 2  # argparse's own
LONGEST_WORD = 400  # characters: paths as they occur stay whole, so that they can be copied
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
YOUNG_OBJECTS = 10_000
"""Made before Python looks among them for garbage; its own 700 makes it look often while 330,000 come to stay."""
MAX_SHARE = 100
MAX_TEMPERATURE = 100.0
MIN_PENALTY, MAX_PENALTY = 0.1, 10.0


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the `bessemer` command."""
    # Threads that wait for each other must sleep, not spin, where others work too: 3 times faster on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments is None:  # the command itself: where a test calls, the process goes on and needs its collector
        _spare_the_collector()
    parser = build_parser()
    _refuse_what_is_no_text(parser, sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(arguments)
    try:
        code = options.verb(options)
    except KeyboardInterrupt:
        console.print("\nStopped. What was built is kept; the same command goes on from the last checkpoint.")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # `| head` has read enough; Python's flush at the end would fail once more, with a trace.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        console.print(f"\n[bold red]bessemer {options.verb_name}[/bold red]: ", end="")
        console.print(_paragraph(error), markup=False)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(code or 0)


def _paragraph(error: ValueError | OSError) -> str:
    """What a person reads of an error: of one of the system's, which file or address it is about."""
    if isinstance(error, ValueError) or not error.strerror:
        return re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: shorten(word[0]), str(error))
    names = " and ".join(shorten(str(name)) for name in (error.filename, error.filename2) if name is not None)
    return (
        f"{names or 'The system'}: {error.strerror}. Check that the path is the one you mean and that you may read "
        "and write there; --debug shows where it was needed."
    )


def _refuse_what_is_no_text(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Refuse what no JSON, no database and no file's name can hold, before it gets as far.

    Python reads bytes of the command line that are not UTF-8 as halves of surrogate pairs.
    """
    for argument in arguments:
        if "\0" in argument or argument.encode(errors="ignore").decode() != argument:
            parser.error(f"the argument {shown(argument)} is not UTF-8 text, or has a NUL in it")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(prog="bessemer", description="Raw text in, a chat model out.")
    adder = parser.add_subparsers(
        title="verbs", required=True, dest="verb_name", metavar="VERB", parser_class=VerbParser
    )

    run = _add_verb(adder, "run", verbs.run, "run the pipeline from text to a quantized chat model")
    _add_recipe_options(run)
    run.add_argument("--in-process", action="store_true", help="run without Prefect; the graph is the same")
    run.add_argument("--no-tracking", action="store_true", help="do not record the run in MLflow")

    plan = _add_verb(adder, "plan", verbs.plan, "say what would run, why and how long; build nothing")
    _add_recipe_options(plan)

    backfill = _add_verb(adder, "backfill", text_verbs.backfill, "take in a past range of dated folders, date by date")
    _add_recipe_options(backfill)
    backfill.add_argument("--from", default="", metavar="DATE", dest="first", help="first date; default: the earliest")
    backfill.add_argument("--to", default="", metavar="DATE", dest="last", help="last date; default: the latest")
    backfill.add_argument(
        "--every", default="day", choices=["day", "week", "month"], help="what becomes one increment; default day"
    )
    _add_watch_options(backfill)
    backfill.add_argument("--plan", action="store_true", help="say which dates would be taken in; take in nothing")
    backfill.add_argument("--no-tracking", action="store_true", help="do not record the runs in MLflow")

    show = _add_verb(adder, "show", verbs.show, "show the summary of a run")
    show.add_argument("run", nargs="?", default="", help="a run's id or its beginning; the latest if left out")

    compare = _add_verb(adder, "compare", verbs.compare, "say what differs between two runs, and what became of it")
    compare.add_argument("before", help="a run's id or its beginning, or champion")
    compare.add_argument("after", nargs="?", default="", help="the same; the latest run if left out")
    compare.add_argument("--samples", type=whole(0, MOST), default=3, help="documents to show of each kind of change")
    compare.add_argument("--html", default="", metavar="FILE", help="write a page instead, in one file")

    chat = _add_verb(adder, "chat", verbs.chat, "talk to a model")
    chat.add_argument(
        "--model",
        default="",
        help="a form of the model, as the summary lists them, or a model folder; default: the served one",
    )
    chat.add_argument("--run", default="", help="the run whose model it is; default: the champion, else the latest")
    chat.add_argument("--message", default="", help="ask this and leave, instead of a conversation")
    chat.add_argument(
        "--temperature",
        type=number(0, MAX_TEMPERATURE),
        default=CONVERSATION.temperature,
        help=f"0 always takes the likeliest token; default: {CONVERSATION.temperature:g}",
    )
    chat.add_argument(
        "--min-p",
        type=number(0, 1),
        default=CONVERSATION.min_p,
        help=f"take only tokens at least this share as likely as the likeliest; default: {CONVERSATION.min_p:g}",
    )
    chat.add_argument(
        "--repetition-penalty",
        type=number(MIN_PENALTY, MAX_PENALTY),
        default=CONVERSATION.repetition_penalty,
        help=f"makes tokens less likely that were there already; 1: none; default: {CONVERSATION.repetition_penalty:g}",
    )
    chat.add_argument(
        "--seed", type=whole(0, MOST), help="of the draws, for the same answer again; default: another each time"
    )
    chat.add_argument("--max-tokens", type=whole(1, MOST), default=200, help="longest answer, in tokens")

    up = _add_verb(adder, "up", verbs.up, "start Prefect's and MLflow's dashboards and a worker")
    up.add_argument("--prefect-port", type=whole(1, HIGHEST_PORT), default=4200, help="port of the Prefect server")
    up.add_argument("--mlflow-port", type=whole(1, HIGHEST_PORT), default=5000, help="port of the MLflow server")
    up.add_argument(
        "--overlap",
        default="wait",
        choices=["wait", "skip"],
        help="what becomes of a look for new text that is due while another is under way",
    )

    schedule = _add_verb(adder, "schedule", text_verbs.schedule, "have a running `bessemer up` look for new text")
    _add_recipe_options(schedule)
    schedule.add_argument("--cron", default="0 2 * * *", help="when to look; default: at two in the night")
    schedule.add_argument("--timezone", default="UTC", help="of --cron, such as Europe/Berlin; default UTC")
    _add_watch_options(schedule)
    schedule.add_argument("--off", action="store_true", help="look no longer for this recipe")

    notify = _add_verb(adder, "notify", text_verbs.notify, "tell a running `bessemer up` that new text has arrived")
    notify.add_argument("path", type=Path, help="the file or folder")

    inspect = _add_verb(adder, "inspect", verbs.inspect, "show what filter or dedup dropped, why, and what if")
    inspect.add_argument("stage", choices=["filter", "dedup"], help="the stage to look into")
    inspect.add_argument("run", nargs="?", default="", help="a run's id or its beginning; the latest if left out")
    inspect.add_argument("--samples", type=whole(0, MOST), default=3, help="documents, or pairs, to show")
    inspect.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings", help="e.g. filter.min_words=20"
    )
    inspect.add_argument("--html", default="", metavar="FILE", help="write a page with movable thresholds (filter)")

    export = _add_verb(adder, "export", verbs.export, "write a model for other engines")
    export.add_argument(
        "--model", default="", help="a form of the model, or a model folder; default: the one that the gate judged"
    )
    export.add_argument("--run", default="", help="the run whose model it is; default: the champion, else the latest")
    export.add_argument("--output", required=True, help="file (GGUF) or folder (hf) to write")
    export.add_argument("--format", default="f16", choices=["hf", *GGUF_FILE_TYPES], help="hf, or GGUF weights")

    verify = _add_verb(adder, "verify", verbs.verify, "build a run again in an empty store and compare the digests")
    verify.add_argument("run", nargs="?", default="", help="a run's id or its beginning; the latest if left out")

    promote = _add_verb(adder, "promote", verbs.promote, "make a run's models the champion, whatever the gate said")
    promote.add_argument("run", help="the run's id or its beginning")
    promote.add_argument(
        "--tracking-uri",
        default=os.environ.get("BESSEMER_TRACKING_URI", ""),
        help="MLflow server or database that has the run (BESSEMER_TRACKING_URI); default: the one in the home folder",
    )

    collect = _add_verb(adder, "gc", verbs.gc, "remove what no kept run and no champion needs")
    collect.add_argument("--keep", type=whole(0, MOST), default=5, help="how many of the latest runs to keep")
    collect.add_argument("--dry-run", action="store_true", help="say what would be removed")
    return parser


def _spare_the_collector() -> None:
    """Look for garbage seldom while importing, and never at the end: that took a third of a cached run's CPU time."""
    # docs/LOG.md, 2026-11-22: 4.1 to 4.4 CPU-s for a cached run on the servers, 6.5 to 6.9 without both.
    gc.set_threshold(YOUNG_OBJECTS)
    atexit.register(gc.freeze)


def _add_verb(
    adder: Any, name: str, verb: Callable[[argparse.Namespace], int | None], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = adder.add_parser(name, help=summary, description=summary)
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
    parser.add_argument(
        "--corpus", default="", help="text to learn from: folder, file, glob, crawl/{date} or hub data set id"
    )
    parser.add_argument("--sft", default="", help="conversations: OpenAI messages, Alpaca or ShareGPT layout")
    parser.add_argument("--preferences", default="", help="pairs: prompt, chosen and rejected as text or messages")
    parser.add_argument("--benchmarks", default="", help="test files whose text must not be learned from")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. dpo.beta=0.2", dest="settings"
    )
    parser.add_argument("--workers", type=whole(0, MOST), default=0, help="processes that share the data stages")
    parser.add_argument("--processes", type=whole(0, MOST), default=0, help="training processes, one per GPU")
    parser.add_argument("--strategy", default="", choices=["", "ddp", "fsdp2", "deepspeed"], help="how they share")
    parser.add_argument(
        "--launcher", default="", choices=["", "torchrun", "ray"], help="what starts them; ray needs engine_address"
    )


def _add_watch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--retrain",
        default="",
        choices=["never", "when grown", "always"],
        help="when to train: never, once there is enough new text (default), or on any new text",
    )
    parser.add_argument(
        "--new-share", type=number(0, MAX_SHARE), default=None, help="share of new tokens that is enough; default 0.05"
    )
    parser.add_argument(
        "--promote", default="", choices=["by the gate", "never"], help="who makes a new model the champion"
    )
