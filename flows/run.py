"""One run from sources to verdict, whoever carries out its stages: the body shared by the flow and `--in-process`."""

import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

from flows.champion import find_start, incumbent_of, promote, role_of
from flows.graph import ROLES, Prepared, Products, Sources, forms, prepare, train
from flows.recipe import Recipe
from tasks.mechanism.execution import Execution
from tasks.mechanism.machine import processor_features
from tasks.mechanism.progress import console, format_seconds
from tasks.mechanism.runs import RunRecord, StageRecord, Status, end_run, hold_run, new_run_id, save_run
from tasks.mechanism.stage import C, Input, Outcome, Stage, obtain
from tasks.mechanism.store import Artifact, Store, explain_full_disk, now_utc
from tasks.text.source import resolve_source
from tasks.track import Tracker
from tasks.train.job import TrainingConfig
from tasks.train.precision import settle_precision

MakeRunner = Callable[[Recipe, Execution, Tracker, Mapping[str, str]], "InProcess"]
Body = Callable[[Recipe, Sources, "InProcess"], None]
Promotion = Literal["by the gate", "never"]


class InProcess:
    """The runner of tests, notebooks and `--in-process`; the Prefect runner differs in `carry_out` only."""

    def __init__(self, recipe: Recipe, execution: Execution, tracker: Tracker, sources: Mapping[str, str]) -> None:
        self.execution = execution
        self.store = Store(execution.home)
        self.tracker = tracker
        self.outcomes: dict[str, Outcome] = {}
        self.record = RunRecord(
            run_id=new_run_id(recipe.name),
            recipe=recipe.model_dump(mode="json"),
            command=shlex.join(["bessemer", *sys.argv[1:]]),
            home=str(execution.home),
            status="running",
            started=now_utc(),
            sources=dict(sources),
            forms={form.name: form.label for form in forms(recipe)},
            roles=dict(ROLES),
        )
        # First: where MLflow refuses, no record of a run that never was stays behind.
        self.tracker.begin(self.record)
        self._alive = ExitStack()
        # Held before it is written: a record that says running and that nobody holds is taken for a dead run's.
        self._alive.enter_context(hold_run(self.store, self.record))
        save_run(self.store, self.record)

    def __call__(self, stage: Stage[C], config: C, label: str = "", /, **inputs: Input) -> Artifact:
        """Serve or build one stage call and write down what became of it."""
        label = label or stage.name
        console.print(f"[bold]{label}[/bold]")
        outcome = self.carry_out(stage, config, label, inputs)
        self.outcomes[label] = outcome
        self._write_down(outcome)
        self.tracker.stage_finished(outcome)
        return outcome.artifact

    def carry_out(self, stage: Stage[Any], config: Any, label: str, inputs: Mapping[str, Input]) -> Outcome:
        """Where the work happens; overridden by runners that happen elsewhere."""
        return obtain(stage, config, inputs, self.execution, label, self.tracker.stage_observer(label))

    def finish(self, status: Status, error: str = "") -> None:
        """Close the record and tracking, whatever happened."""
        try:
            end_run(self.store, self.record, status, error)
        except OSError as failure:  # a full disk: that the record stays open must not hide why the run ended
            console.print(f"The record of {self.record.run_id} could not be closed: {failure}.", markup=False)
        self._alive.close()
        self.tracker.finish(self.record, status)  # last: it sends the record as it has been closed

    def _write_down(self, outcome: Outcome) -> None:
        manifest = outcome.manifest
        record = StageRecord(
            label=outcome.label,
            stage=manifest.stage,
            key=manifest.key,
            digest=manifest.digest,
            status=outcome.status,
            seconds=manifest.seconds,
            note=outcome.note,
        )
        self.record.stages.append(record)
        with explain_full_disk(self.store.home, f"recording {outcome.label}"):
            save_run(self.store, self.record)
        spent = "cached" if outcome.status == "cached" else format_seconds(manifest.seconds)
        note = f" ({outcome.note})" if outcome.note else ""
        console.print(f"  {spent}: {manifest.digest[:12]}{note}", markup=False)


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
    runner.tracker.judged(products.candidate.digest, role_of(runner.store, recipe.name, products))


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
    recipe = settle(recipe, execution)
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


def settle(recipe: Recipe, execution: Execution) -> Recipe:
    """The recipe as this machine carries it out: `precision: auto` becomes the one that its processor is fastest in."""
    sections = {name: section for name, section in recipe if isinstance(section, TrainingConfig)}
    features = processor_features()
    settled = {name: settle_precision(section, execution, features) for name, section in sections.items()}
    chosen = [f"{name} in {settled[name].precision}" for name in sections if sections[name].precision == "auto"]
    if chosen:
        console.print(f"[dim]precision auto on this processor: {', '.join(chosen)}[/dim]")
    return recipe.model_copy(update=settled)


def check_training(recipe: Recipe, execution: Execution) -> None:
    """Refuse before the first stage what training would refuse hours later, by config alone.

    Raises:
        ValueError: a step that the processes cannot share evenly, or an optimizer that the strategy cannot run.
    """
    for form in forms(recipe):
        if isinstance(form.config, TrainingConfig):
            _check_share(form.label, form.config, execution)
            _check_optimizer(form.label, form.config, execution)


def _check_share(stage: str, config: TrainingConfig, execution: Execution) -> None:
    step = config.batches.smallest_step
    if step.items % execution.processes:
        raise ValueError(
            f"A step of {stage} has {step.items} {step.unit}, which {execution.processes} processes cannot share "
            f"evenly. Use a larger {stage}.batches.{step.field}, or a number of processes that divides it."
        )


def _check_optimizer(stage: str, config: TrainingConfig, execution: Execution) -> None:
    if execution.strategy == "deepspeed" and config.optimizer.kind != "adamw":
        raise ValueError(
            f"{stage}.optimizer.kind is '{config.optimizer.kind}', which cannot run under the strategy 'deepspeed': "
            f"it cuts matrices into flat pieces. Use {stage}.optimizer.kind=adamw, or the strategy 'fsdp2' or 'ddp'."
        )
