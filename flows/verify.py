"""Prove a run: build its recipe again in an empty store and compare every digest with what the run recorded."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from flows.graph import Sources, Start
from flows.recipe import Recipe
from flows.run import InProcess, build_models, execute, resolve_sources, source_digests
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.store import Store, StoreDamage
from tasks.track import Untracked


@dataclass(frozen=True)
class Comparison:
    """One stage call, as recorded and as rebuilt."""

    label: str
    recorded: str
    rebuilt: str

    @property
    def equal(self) -> bool:
        """Whether the rebuild gave the same bytes."""
        return self.recorded == self.rebuilt


def verify_run(record: RunRecord, execution: Execution) -> list[Comparison]:
    """Rebuild the run's recipe from its sources, as they are now, in a temporary store.

    Only what comes before the gate is compared: the gate asks about a champion, which an empty store lacks. A model
    that pretraining went on from is taken as it is.

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

    with tempfile.TemporaryDirectory(prefix="bessemer-verify-") as home:
        elsewhere = execution.model_copy(update={"home": Path(home)})
        again = execute(recipe, elsewhere, Untracked(), body=build_from_start)
    rebuilt = again.digests
    return [
        Comparison(stage.label, stage.digest, rebuilt.get(stage.label, ""))
        for stage in record.stages
        if stage.label != "gate"
    ]


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
