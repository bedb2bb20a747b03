"""New text in landings of a twentieth of a corpus: what each costs beside all text at once, and that it ends the same.

Each price is the CPU-seconds of the data stages, as their manifests tell them, of a run in a process of its own.
"""

import statistics
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from benchmarks.child import in_child
from benchmarks.data_corpus import real_texts, write_jsonl
from benchmarks.report import Figure
from flows.graph import Sources, prepare
from flows.recipe import PYTHON_DOCS, Recipe
from flows.run import Body, InProcess, build_models, execute
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.store import Store
from tasks.track import Untracked
from tests.helpers.growing_text import make_recipe

CHARACTERS = 3300
FILES = 100
LANDINGS = (0, 85, 90, 95, 100)
"""Files that are there after each landing; the first is what was there before."""
KEPT_GOAL = 0.5
"""Of the CPU-seconds of all text, where the champion's vocabulary is kept."""
RELEARNED_GOAL = 1.0
"""A vocabulary learned anew reads all text again, and all is packed again with it: not dearer than from scratch."""
SETTINGS = ("ingest.shard_megabytes=0.5", "pack.validation_share=0.02", "pretrain.batches.steps=20", "start=champion")


def prepare_only(recipe: Recipe, sources: Sources, runner: InProcess) -> None:
    """The data half of the pipeline."""
    prepare(recipe, sources, runner)


def take_in(recipe: Recipe, home: Path, body: Body = prepare_only) -> RunRecord:
    """Prepare what lies in the recipe's folder, or carry out another part of the pipeline on it."""
    return execute(recipe, Execution(home=home, workers=1, threads=1), Untracked(), body=body)


def prices(home: Path, record: RunRecord) -> dict[str, float]:
    """CPU-seconds of each data stage that the run built."""
    manifests = {stage.label: Store(home).find(stage.stage, stage.key) for stage in record.stages}
    built = {stage.label for stage in record.stages if stage.status == "built"}
    return {label: manifest.cpu_seconds for label, manifest in manifests.items() if manifest and label in built}


def landings(folder: Path, documents: int) -> list[Figure]:
    """Take in three landings with the tokenizer learned anew and with the champion's, then all text from scratch."""
    texts = real_texts(PYTHON_DOCS, folder, CHARACTERS, documents)
    recipe = make_recipe(folder, *SETTINGS)
    homes = {"scratch": folder / "relearned", "champion": folder / "kept"}
    shares: dict[str, list[float]] = {start: [] for start in homes}
    records: dict[str, RunRecord] = {}
    costs: dict[tuple[str, int], dict[str, float]] = {}
    for begin, end in pairwise(LANDINGS):
        for file in range(begin, end):
            # Every hundredth: each landing is a sample of all text, not one of its sources.
            write_jsonl(texts[file::FILES], Path(recipe.corpus) / f"{file:03d}.jsonl")
        for start, home in homes.items():
            asked = recipe.model_copy(update={"start": start})
            body = build_models if begin == 0 and start == "champion" else prepare_only  # there must be a champion
            records[start] = in_child(take_in, asked, home, body)
            costs[start, end] = prices(home, records[start])
    whole = in_child(take_in, recipe, folder / "whole")
    full = prices(folder / "whole", whole)
    size = sum(path.stat().st_size for path in Path(recipe.corpus).iterdir()) / 1e6
    print(f"\n{len(texts):,} documents, {size:.0f} MB in {FILES} files; from scratch: {words(full)}")
    for (start, end), cost in costs.items():
        if end > LANDINGS[1]:
            shares[start].append(sum(cost.values()) / sum(full.values()))
            print(f"{end - 5} to {end} files, start {start}: {words(cost)}: {shares[start][-1]:.3f} of it")
    equal = records["scratch"].digests == whole.digests
    kept = {label: digest for label, digest in records["champion"].digests.items() if label != "pack"}
    equal_kept = kept == {label: whole.digests[label] for label in kept}
    return [
        Figure("three landings equal one run, of two ways", equal + equal_kept, 2),
        Figure("a landing's cost, tokenizer relearned", statistics.median(shares["scratch"]), RELEARNED_GOAL, "lower"),
        Figure("a landing's cost, tokenizer kept", statistics.median(shares["champion"]), KEPT_GOAL, "lower"),
    ]


def words(cost: Mapping[str, float]) -> str:
    """`5.1 CPU-s (ingest 2.0, filter 3.1)`."""
    parts = ", ".join(f"{label} {seconds:.2f}" for label, seconds in cost.items())
    return f"{sum(cost.values()):.2f} CPU-s ({parts})"
