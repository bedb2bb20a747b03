"""Prove a run: build its recipe again in an empty store and compare every digest with what the run recorded."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from flows.recipe import Recipe
from flows.run import execute, resolve_sources, source_digests
from tasks.execution import Execution
from tasks.runs import RunRecord
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

    Only what comes before the gate is compared: the gate asks about a champion, which an empty store lacks.

    Raises:
        ValueError: the run's sources have changed since, or a stage refused its input.
    """
    recipe = Recipe.model_validate(record.recipe)
    found = source_digests(resolve_sources(recipe, execution))
    changed = [name for name, digest in record.sources.items() if found[name] != digest]
    if changed:
        raise ValueError(
            f"The run {record.run_id} cannot be verified: its {' and '.join(changed)} changed since it ran. "
            "Restore the files as they were, then verify again."
        )
    with tempfile.TemporaryDirectory(prefix="bessemer-verify-") as home:
        again = execute(recipe, execution.model_copy(update={"home": Path(home)}), Untracked())
    rebuilt = {stage.label: stage.digest for stage in again.stages}
    return [
        Comparison(stage.label, stage.digest, rebuilt.get(stage.label, ""))
        for stage in record.stages
        if stage.label != "gate"
    ]
