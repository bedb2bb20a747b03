"""Runs of a few stage calls, tracked, and what MLflow was told of them."""

from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord, StageRecord, Status, end_run, new_run_id, save_run
from tasks.mechanism.stage import Outcome, Stage, StageConfig, obtain
from tasks.mechanism.store import Store, now_utc
from tasks.track import Tracker
from tasks.track.connection import local_tracking_uri

RECIPE = {
    "name": "toy",
    "corpus": "some/folder",
    "pretrain": {"optimizer": {"learning_rate": 0.01}, "batches": {"steps": 3}},
    "dpo": {"beta": 0.1},
}


class ToyRun:
    """A run of stage calls as a runner would make them."""

    def __init__(self, execution: Execution, tracker: Tracker, recipe: dict[str, Any] = RECIPE) -> None:
        self.execution, self.tracker, self.store = execution, tracker, Store(execution.home)
        self.record = RunRecord(
            run_id=new_run_id("toy"),
            recipe=recipe,
            command="bessemer run toy",
            home=str(execution.home),
            status="running",
            started=now_utc(),
            sources={"corpus": "ab" * 32},
            forms={"base": "pretrain", "dpo": "dpo"},
        )
        tracker.begin(self.record)
        save_run(self.store, self.record)

    def call(self, stage: Stage[Any], config: StageConfig, label: str, **inputs: Any) -> Outcome:
        observer = self.tracker.stage_observer(label)
        outcome = obtain(stage, config, inputs, self.execution, label, observer)
        m = outcome.manifest
        self.record.stages.append(
            StageRecord(
                label=label,
                stage=m.stage,
                key=m.key,
                digest=m.digest,
                status=outcome.status,
                seconds=m.seconds,
                note=outcome.note,
            )
        )
        save_run(self.store, self.record)
        self.tracker.stage_finished(outcome)
        return outcome

    def end(self, status: Status = "completed") -> None:
        end_run(self.store, self.record, status)
        self.tracker.finish(self.record, status)


def client_of(execution: Execution) -> MlflowClient:
    uri = execution.tracking_uri or local_tracking_uri(execution.home)
    return MlflowClient(uri, uri)


def nested_runs(client: MlflowClient, parent: str) -> dict[str, Run]:
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    return {run.info.run_name: run for run in found}


def unsent(execution: Execution) -> list[Path]:
    return sorted((execution.home / "mlflow" / "unsent").glob("*"))
