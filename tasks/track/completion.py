"""Bring into MLflow what it does not have of a run yet, while the run goes on, as it ends, or by a later run.

`python -m tasks.track.completion HOME` does so for all runs that ended without it: `bessemer up` starts it, since until
then MLflow's pages show a run that was killed as one that runs.
"""

import shutil
import sys
from pathlib import Path

from mlflow.entities import Metric

from tasks.evaluation.plots import read_curve
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord, Status, run_folder
from tasks.mechanism.stage import Outcome, curve_path
from tasks.mechanism.store import Artifact, Store
from tasks.track.artifacts import deliver_artifact
from tasks.track.connection import Connection, connect
from tasks.track.delivery import (
    cost_metrics,
    deliver_files,
    deliver_nested,
    iso_to_ms,
    now_ms,
    parent_metrics,
    send,
    start_nested,
)
from tasks.track.ledger import Ledger, attachment_folder, drop_ledger, hold_ledger, ledgers, save_ledger
from tasks.track.registry import register_models, set_role

_MLFLOW_STATUS: dict[Status, str] = {
    "running": "FAILED",  # found so by a later run: its process died
    "completed": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
}


def nested_run(
    connection: Connection, store: Store, ledger: Ledger, record: RunRecord, label: str, started_ms: int
) -> str:
    """The id of the nested run of a stage, created where the ledger knows none."""
    if label not in ledger.nested:
        ledger.nested[label] = start_nested(connection, record, label, started_ms)
        save_ledger(store, ledger)
    return ledger.nested[label]


def deliver(connection: Connection, store: Store, ledger: Ledger, record: RunRecord, outcomes: list[Outcome]) -> None:
    """Bring stages into the pipeline run in one call, built ones into nested runs, models into the registry."""
    left = [outcome for outcome in outcomes if outcome.label not in ledger.delivered]
    if not left:
        return
    metrics: list[Metric] = []
    for outcome in left:
        points = read_curve(curve_path(store, outcome.manifest.stage, outcome.manifest.key))
        metrics += parent_metrics(outcome, points)
        if outcome.status == "built":
            started_ms = iso_to_ms(outcome.manifest.created) - int(1000 * outcome.manifest.seconds)
            nested = nested_run(connection, store, ledger, record, outcome.label, started_ms)
            deliver_nested(connection, nested, outcome, points)
            deliver_artifact(connection, nested, store, outcome, ledger.mirror)
    send(connection, record.tracking_run_id, metrics)
    with store.lock("registry", str(record.recipe["name"])):  # two runs that look at once would each add a version
        register_models(connection, record, left, ledger.nested)
    ledger.delivered += [outcome.label for outcome in left]
    save_ledger(store, ledger)


def complete(connection: Connection, store: Store, ledger: Ledger, record: RunRecord) -> None:
    """Deliver whatever is missing of an ended run, close it in MLflow and forget its ledger."""
    deliver(connection, store, ledger, record, _outcomes_of(store, record))
    client, status = connection.client, _MLFLOW_STATUS[record.status]
    if ledger.judged:
        set_role(connection, str(record.recipe["name"]), ledger.judged.digest, ledger.judged.role)
    for label, run_id in ledger.nested.items():
        if label not in ledger.delivered:
            client.set_terminated(run_id, status)
    ended_ms = iso_to_ms(record.ended) if record.ended else now_ms()
    send(
        connection,
        record.tracking_run_id,
        cost_metrics(store, record, ended_ms),
        tags={"status": record.status, "error": record.error} if record.error else {"status": record.status},
    )
    folder = attachment_folder(store, record.run_id)
    deliver_files(connection, record.tracking_run_id, folder)
    client.set_terminated(record.tracking_run_id, status, ended_ms)
    drop_ledger(store, ledger.run_id)  # before its files: a ledger without them would be delivered again, bare
    shutil.rmtree(folder, ignore_errors=True)


def _outcomes_of(store: Store, record: RunRecord) -> list[Outcome]:
    """The run's stages as their manifests tell them; what was collected since is left out."""
    found = []
    for stage in record.stages:
        manifest = store.find(stage.stage, stage.key)
        if manifest is not None:
            artifact = Artifact(manifest.digest, store.objects / manifest.digest)
            found.append(Outcome(stage.label, artifact, manifest, stage.status, stage.note))
    return found


def catch_up(connection: Connection, store: Store) -> None:
    """Deliver what earlier runs could not: the server had gone, or the process was killed."""
    for path in ledgers(store.home):
        try:
            with hold_ledger(store, path.stem):
                _catch_up_one(connection, store, path)
        except BlockingIOError:
            continue  # it is still running


def _catch_up_one(connection: Connection, store: Store, path: Path) -> None:
    ledger = Ledger.model_validate_json(path.read_bytes())
    if ledger.tracking_uri != connection.uri:  # kept for a run that tracks there
        return
    record_path = run_folder(store) / f"{ledger.run_id}.json"
    if record_path.exists():
        complete(connection, store, ledger, RunRecord.model_validate_json(record_path.read_bytes()))
    else:
        path.unlink()  # `bessemer gc` took the run: nobody can tell the rest


if __name__ == "__main__":
    catch_up(connect(Execution(home=Path(sys.argv[1]))), Store(Path(sys.argv[1])))
