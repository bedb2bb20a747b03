"""Prove a run: build its recipe again in an empty store and compare every digest with what the run recorded.

Each stage is built with the number of threads that it was recorded with: products in bf16 depend on it on most of the
processors that were looked at (docs/training.md), and on the processor everywhere.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flows.graph import Sources, Start
from flows.recipe import Recipe
from flows.run import InProcess, build_models, execute, resolve_sources, source_digests
from tasks.mechanism.execution import Execution
from tasks.mechanism.machine import environment
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.stage import Input, Outcome, Stage, obtain
from tasks.mechanism.store import Manifest, Store, StoreDamage
from tasks.track import Tracker, Untracked

FACTS = ("cpu", "MKL_CBWR", "processes", "torch", "numpy", "numba", "tokenizers", "pyarrow")
"""Facts of a manifest's environment on which bits can depend, beside the number of threads, which is kept."""


@dataclass(frozen=True)
class Comparison:
    """One stage call, as recorded and as rebuilt."""

    label: str
    recorded: str
    rebuilt: str
    elsewhere: tuple[str, ...] = ()
    """What may explain a difference: the FACTS that were other ones when it was recorded, and what they are now."""

    @property
    def equal(self) -> bool:
        """Whether the rebuild gave the same bytes."""
        return self.recorded == self.rebuilt


class AsRecorded(InProcess):
    """Builds each stage with the number of threads that its manifest, by label in `recorded`, was built with."""

    def __init__(
        self,
        recipe: Recipe,
        execution: Execution,
        tracker: Tracker,
        sources: Mapping[str, str],
        recorded: Mapping[str, Manifest],
    ) -> None:
        super().__init__(recipe, execution, tracker, sources)
        self._recorded = recorded

    def carry_out(self, stage: Stage[Any], config: Any, label: str, inputs: Mapping[str, Input]) -> Outcome:
        """See InProcess; a stage whose manifest is gone is built as the execution says."""
        execution = self.execution
        if label in self._recorded:
            threads = int(self._recorded[label].environment["threads"])
            execution = execution.model_copy(update={"threads": threads})
        return obtain(stage, config, inputs, execution, label, self.tracker.stage_observer(label))


def verify_run(record: RunRecord, execution: Execution) -> list[Comparison]:
    """Rebuild the run's recipe from its sources, as they are now, in a temporary store.

    Of `execution` the number of threads counts only where a manifest is gone. Only what comes before the gate is
    compared: the gate asks about a champion, which an empty store lacks. A model that pretraining went on from is taken
    as it is.

    Raises:
        ValueError: the run's sources have changed since, or a stage refused its input.
    """
    recipe = Recipe.model_validate(record.recipe)
    start = _recorded_start(Store(execution.home), record)
    found = source_digests(resolve_sources(recipe.model_copy(update={"start": "scratch"}), execution))
    changed = [name for name, digest in record.sources.items() if found[name] != digest]
    if changed:
        raise ValueError(
            f"The run {record.run_id} cannot be verified: its {' and '.join(changed)} changed since it ran. "
            "Restore the files as they were, then verify again."
        )

    def build_from_start(recipe: Recipe, sources: Sources, runner: InProcess) -> None:
        build_models(recipe, replace(sources, start=start), runner)

    recorded = _manifests(Store(execution.home), record)
    make_runner = partial(AsRecorded, recorded=recorded)
    with tempfile.TemporaryDirectory(prefix="bessemer-verify-") as home:
        # A home of its own: in ours every stage would be served.
        elsewhere = execution.model_copy(update={"home": Path(home)})
        again = execute(recipe, elsewhere, Untracked(), make_runner, build_from_start)
    rebuilt, now = again.digests, environment(execution)
    return [
        Comparison(stage.label, stage.digest, rebuilt.get(stage.label, ""), _elsewhere(recorded.get(stage.label), now))
        for stage in record.stages
        if stage.label != "gate"
    ]


def _manifests(store: Store, record: RunRecord) -> dict[str, Manifest]:
    """The manifests of the run's stages that are still there, by label."""
    found = {stage.label: store.find(stage.stage, stage.key) for stage in record.stages}
    return {label: manifest for label, manifest in found.items() if manifest}


def _elsewhere(manifest: Manifest | None, now: Mapping[str, str]) -> tuple[str, ...]:
    then = manifest.environment if manifest else {}
    differing = [fact for fact in FACTS if then.get(fact, now[fact]) != now[fact]]
    return tuple(f"{fact}: {then[fact]}, now {now[fact]}" for fact in differing)


def _recorded_start(store: Store, record: RunRecord) -> Start | None:
    """The model and tokenizer that the run's pretraining went on from, as its manifest names them."""
    stage = record.stage("pretrain")
    manifest = store.find(stage.stage, stage.key) if stage else None
    if manifest is None or "start" not in manifest.inputs:
        return None
    try:
        model, tokenizer = store.open(manifest.inputs["start"]), store.open(manifest.inputs["tokenizer"])
    except StoreDamage as damage:
        raise ValueError(
            f"The run {record.run_id} cannot be verified: the model it started from: {damage}."
        ) from damage
    return Start(tokenizer, lambda tokens: model)
