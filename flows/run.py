"""One run from sources to verdict, whoever carries out its stages: the body shared by the flow and `--in-process`."""

from collections.abc import Callable, Mapping
from typing import Literal

from flows.champion import find_start, incumbent_of, promote, role_of
from flows.check import check_training
from flows.graph import Prepared, Products, Sources, prepare, train
from flows.recipe import Recipe
from flows.runners import InProcess
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.store import Store
from tasks.text.source import resolve_source
from tasks.track import Tracker

MakeRunner = Callable[[Recipe, Execution, Tracker, Mapping[str, str]], InProcess]
Body = Callable[[Recipe, Sources, InProcess], None]
Promotion = Literal["by the gate", "never"]


def resolve_sources(recipe: Recipe, execution: Execution) -> Sources:
    """Identify the content that a run starts from.

    Raises:
        ValueError: a source does not exist or holds no files, or the champion to start from is gone or has another
            vocabulary than the recipe asks for.
    """
    store = Store(execution.home)
    cache = store.home / "sources"
    return Sources(
        corpus=resolve_source(recipe.corpus, cache),
        sft=resolve_source(recipe.sft_data, cache),
        preferences=resolve_source(recipe.preference_data, cache),
        benchmarks=resolve_source(recipe.benchmarks, cache) if recipe.benchmarks else None,
        start=find_start(store, recipe),
    )


def source_digests(sources: Sources) -> dict[str, str]:
    """What identifies the sources, under the names of the recipe's fields."""
    return {
        "corpus": sources.corpus.digest,
        "sft_data": sources.sft.digest,
        "preference_data": sources.preferences.digest,
        **{name: source.digest for name, source in sources.benchmark_input.items()},
    }


def build_models(recipe: Recipe, sources: Sources, runner: InProcess) -> None:
    """The whole pipeline."""
    train_models(recipe, prepare(recipe, sources, runner), runner)


def train_models(recipe: Recipe, data: Prepared, runner: InProcess, promotion: Promotion = "by the gate") -> None:
    """Its second half; the champion changes hands if the verdict says so and `promotion` leaves it to the gate."""
    products: Products = train(recipe, data, incumbent_of(runner.store, recipe.name), runner)
    if promotion == "by the gate":
        promote(runner.store, recipe.name, products, runner.record)
    runner.tracker.judged(products.models["dpo"].digest, role_of(runner.store, recipe.name, products))


def execute(
    recipe: Recipe,
    execution: Execution,
    tracker: Tracker,
    make_runner: MakeRunner = InProcess,
    body: Body = build_models,
) -> RunRecord:
    """Run the pipeline, or as much of it as `body` does, and return the run's record.

    Raises:
        ValueError: training cannot run as asked, or a stage refused its input; then the record says failed, and what
            was built stays.
    """
    check_training(recipe, execution)
    sources = resolve_sources(recipe, execution)
    runner = make_runner(recipe, execution, tracker, source_digests(sources))
    try:
        body(recipe, sources, runner)
    except Exception as error:
        runner.finish("failed", str(error))
        raise
    except BaseException:  # Ctrl-C, or an orchestrator's signal to stop
        runner.finish("cancelled")
        raise
    runner.finish("completed")
    return runner.record
