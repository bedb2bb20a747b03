"""Parameters, metrics, data sets and tags that a run leaves in MLflow, derived from its record, manifests and curves.

So they can be delivered late or again: metrics that are already there are not written twice.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunInfo, RunTag
from mlflow.exceptions import MlflowException

from tasks.mechanism.runs import RunRecord, flatten
from tasks.mechanism.stage import Outcome
from tasks.mechanism.store import Store
from tasks.track.connection import Connection

PARENT_CURVE_POINTS = 200  # enough to compare runs by; the nested run has every point
MAX_METRICS_PER_BATCH = 1000  # more, or more parameters than the next, are refused by MLflow's server
MAX_PARAMS_PER_BATCH = 100  # MLflow's bound of tags, too
MAX_DATASET_DIGEST = 36  # the width of the column in MLflow's database
DATASET_ATTEMPTS = 5  # each of four runs that begin at once may be refused by each of the others
ROOT = Path(__file__).resolve().parent.parent.parent

Point = dict[str, float]
T = TypeVar("T")


def now_ms() -> int:
    """The current time as MLflow writes it."""
    return int(time.time() * 1000)


def iso_to_ms(text: str) -> int:
    """ISO 8601 -> milliseconds since the epoch."""
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def experiment_id(connection: Connection, name: str) -> str:
    """The experiment of a recipe; made where it is missing, brought back where somebody deleted it."""
    client = connection.client
    found = client.get_experiment_by_name(name)
    if found is None:
        # A path: what a server placed (mlflow-artifacts:/) goes through it alone, 100 MB in 0.43 s; a copy takes 0.18.
        location = f"{connection.artifact_root}/{name}" if connection.artifact_root else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another run of the recipe was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)  # MLflow keeps the name of a deleted one taken
    return str(found.experiment_id)


def start_parent(connection: Connection, record: RunRecord) -> RunInfo:
    """Create the pipeline run with every stage's parameters and its data sets; returns its ids."""
    client, recipe = connection.client, record.recipe
    tags = {
        "recipe": str(recipe["name"]),
        "corpus": str(recipe.get("corpus", "")),
        "bessemer.run_id": record.run_id,
        "mlflow.source.name": record.command,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER", ""),
        "mlflow.source.git.commit": git_commit(),
    }
    run = client.create_run(
        experiment_id(connection, str(recipe["name"])),
        start_time=iso_to_ms(record.started),
        tags={name: value for name, value in tags.items() if value},
        run_name=record.run_id,
    )
    run_id = str(run.info.run_id)
    send(connection, run_id, params=parameters(recipe))
    sources = [dataset(name, str(recipe.get(name, name)), digest) for name, digest in record.sources.items()]
    log_datasets(connection, run_id, sources)
    return run.info


def git_commit() -> str:
    """The commit of the code that runs, "" outside a checkout."""
    if not (ROOT / ".git").exists():  # installed, it may lie in a repository of somebody else's, whose commit git names
        return ""
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def parameters(values: Mapping[str, Any]) -> dict[str, str]:
    """{"filter": {"min_words": 5}} -> {"filter.min_words": "5"}."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in flatten(values).items()}


def dataset(role: str, source: str, digest: str) -> DatasetInput:
    """A data set with our digest; MLflow keeps 36 characters of it, the tag the whole."""
    description = json.dumps({"uri": source})
    entity = Dataset(role, digest[:MAX_DATASET_DIGEST], "local", description)
    return DatasetInput(entity, [InputTag("mlflow.data.context", role), InputTag("sha256", digest)])


def log_datasets(connection: Connection, run_id: str, datasets: list[DatasetInput]) -> None:
    """Tie data sets to a run.

    MLflow 3.17 looks whether it knows a data set and then adds it: of two runs that do so at once, one is refused by
    the database. What it was to add is there then, so it is asked again.
    """
    for attempt in range(DATASET_ATTEMPTS if datasets else 0):
        try:
            connection.client.log_inputs(run_id, datasets=datasets)
            return
        except MlflowException:
            if attempt + 1 == DATASET_ATTEMPTS:
                raise


def start_nested(connection: Connection, record: RunRecord, label: str, started_ms: int) -> str:
    """Create the nested run of a stage that is being built; returns its id."""
    name = str(record.recipe["name"])
    tags = {"mlflow.parentRunId": record.tracking_run_id, "stage": label, "recipe": name}
    run = connection.client.create_run(
        experiment_id(connection, name), start_time=started_ms, tags=tags, run_name=label
    )
    return str(run.info.run_id)


def send(
    connection: Connection,
    run_id: str,
    metrics: Sequence[Metric] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write to a run in as few calls as MLflow allows."""
    client = connection.client
    for some_metrics in _slices(metrics, MAX_METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=some_metrics)
    entries = [Param(name, value) for name, value in (params or {}).items() if value != ""]
    for some_params in _slices(entries, MAX_PARAMS_PER_BATCH):
        client.log_batch(run_id, params=some_params)
    for some_tags in _slices([RunTag(name, value) for name, value in (tags or {}).items()], MAX_PARAMS_PER_BATCH):
        client.log_batch(run_id, tags=some_tags)


def _slices(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def metric_name(text: str) -> str:
    """The name with what MLflow does not allow replaced."""
    return re.sub(r"[^\w./ -]", "_", text)


def points_to_metrics(points: Sequence[Point], prefix: str, timestamp_ms: int) -> list[Metric]:
    """Curve points as MLflow metrics, one per value."""
    return [
        Metric(metric_name(prefix + name), float(value), timestamp_ms, int(point["step"]))
        for point in points
        for name, value in point.items()
        if name != "step"
    ]


def thin(points: Sequence[Point], count: int) -> list[Point]:
    """At most `count` points per series, evenly spread, its last always among them."""
    wanted: dict[int, Point] = {}
    series: dict[str, list[Point]] = {}
    for point in points:
        for name in point:
            if name != "step":
                series.setdefault(name, []).append(point)
    for name, own in series.items():
        step = max(1, -(-len(own) // count))  # rounded up: never more than `count`
        for point in own[::-1][::step]:
            kept = wanted.setdefault(int(point["step"]), {"step": point["step"]})
            kept[name] = point[name]
    return [wanted[step] for step in sorted(wanted)]


def parent_metrics(outcome: Outcome, points: Sequence[Point]) -> list[Metric]:
    """A stage's final figures and thinned curves, as the pipeline run carries them: `pretrain/loss`."""
    prefix = f"{outcome.label}/"
    timestamp = iso_to_ms(outcome.manifest.created)
    return [
        *points_to_metrics(thin(points, PARENT_CURVE_POINTS), prefix, timestamp),
        *_final_metrics(outcome, points, prefix, timestamp),
    ]


def _final_metrics(outcome: Outcome, points: Sequence[Point], prefix: str, timestamp_ms: int) -> list[Metric]:
    """Final figures stand at the end of the curves: MLflow shows the value with the highest step as the latest."""
    manifest = outcome.manifest
    last = int(max((point["step"] for point in points), default=0))
    figures = {**manifest.metrics, "seconds": manifest.seconds, "cpu_seconds": manifest.cpu_seconds}
    return [
        # + 1: among points of one step MLflow calls the one with the latest time the last.
        Metric(metric_name(prefix + name), value, timestamp_ms + 1, last if _is_curve(name, points) else 0)
        for name, value in figures.items()
    ]


def _is_curve(name: str, points: Sequence[Point]) -> bool:
    return any(name in point for point in points)


def deliver_nested(connection: Connection, run_id: str, outcome: Outcome, points: Sequence[Point]) -> None:
    """Complete the nested run of a built stage: config, figures, whole curves, inputs; and end it."""
    manifest, client = outcome.manifest, connection.client
    timestamp = iso_to_ms(manifest.created)
    missing = _without_known(connection, run_id, points_to_metrics(points, "", now_ms()))
    send(
        connection,
        run_id,
        [*missing, *_final_metrics(outcome, points, "", timestamp)],
        parameters(manifest.config),
        {"digest": manifest.digest, "key": manifest.key, "code_digest": manifest.code_digest, **manifest.environment},
    )
    inputs = [dataset(name, f"bessemer:{digest}", digest) for name, digest in manifest.inputs.items()]
    log_datasets(connection, run_id, inputs)
    client.set_terminated(run_id, "FINISHED", timestamp)


def deliver_files(connection: Connection, run_id: str, folder: Path) -> None:
    """Upload what was attached to a run; what lies in `tables/` is shown as tables (MLflow finds them by this tag)."""
    if not folder.is_dir():
        return
    connection.client.log_artifacts(run_id, str(folder))
    tables = [{"path": f"tables/{path.name}", "type": "table"} for path in sorted(folder.glob("tables/*.json"))]
    if tables:
        connection.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))


def _without_known(connection: Connection, run_id: str, metrics: Sequence[Metric]) -> list[Metric]:
    """Those whose step the server does not have yet: it was sent live, or by a delivery that was cut off."""
    known = {
        name: {metric.step for metric in connection.client.get_metric_history(run_id, name)}
        for name in {metric.key for metric in metrics}
    }
    return [metric for metric in metrics if metric.step not in known[metric.key]]


def cost_metrics(store: Store, record: RunRecord, ended_ms: int) -> list[Metric]:
    """What the run took, and what it would have taken had nothing been built before."""
    manifests = [store.find(stage.stage, stage.key) for stage in record.stages]
    figures = {
        "run/seconds": (ended_ms - iso_to_ms(record.started)) / 1000,
        "run/seconds_built": sum(stage.seconds for stage in record.stages if stage.status == "built"),
        "run/seconds_from_scratch": sum(stage.seconds for stage in record.stages),
        "run/cpu_seconds_from_scratch": sum(manifest.cpu_seconds for manifest in manifests if manifest),
        "run/stages_built": sum(stage.status == "built" for stage in record.stages),
        "run/stages_cached": sum(stage.status == "cached" for stage in record.stages),
    }
    return [Metric(name, float(value), ended_ms, 0) for name, value in figures.items()]
