"""Carry out the graph's stage calls one after the other, keep the run's record, and tell whoever watches."""

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from flows.recipe import Recipe
from flows.show.markdown import report_files
from flows.show.summary import MODEL_LABELS
from tasks.mechanism.execution import Execution
from tasks.mechanism.progress import console, format_seconds
from tasks.mechanism.runs import RunRecord, StageRecord, Status, end_run, new_run_id, save_run
from tasks.mechanism.stage import C, Input, Outcome, Stage, obtain
from tasks.mechanism.store import Artifact, Store, explain_full_disk, now_utc
from tasks.track import Tracker


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
            forms=dict(MODEL_LABELS),
        )
        self.tracker.begin(self.record)
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
            for name, data in report_files(self.store, self.record).items():
                self.tracker.attach(name, data)
        except OSError as failure:  # a full disk: that the record stays open must not hide why the run ended
            console.print(f"The record of {self.record.run_id} could not be closed: {failure}.", markup=False)
        self.tracker.finish(self.record, status)

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
