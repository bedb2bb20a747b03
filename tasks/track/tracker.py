"""The tracker of a run: the run only appends to lists, a thread of its own talks to MLflow."""

import fcntl
import shutil
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from mlflow.entities import Metric
from pydantic import BaseModel, ConfigDict

from tasks.evaluation.plots import read_curve
from tasks.mechanism.execution import Execution
from tasks.mechanism.observe import Reporter
from tasks.mechanism.progress import Progress, console
from tasks.mechanism.runs import RunRecord, Status, run_folder
from tasks.mechanism.stage import Outcome, curve_path
from tasks.mechanism.store import Artifact, Store, write_atomically
from tasks.track import Report, Role, delivery, registry
from tasks.track.connection import Connection, tracking_folder

LIVE_INTERVAL_S = 3.0
FINISH_TIMEOUT_S = 120.0
MAX_LIVE_POINTS = 50_000
_MLFLOW_STATUS: dict[Status, str] = {
    "running": "FAILED",  # found so by a later run: its process died
    "completed": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
}


class Judgement(BaseModel):
    """What the gate made of the run's model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    role: Role


class Ledger(BaseModel):
    """What of a run MLflow has; at `mlflow/unsent/<run_id>.json` until all is delivered."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    tracking_uri: str
    nested: dict[str, str] = {}
    delivered: list[str] = []
    judged: Judgement | None = None


class StageObserver:
    """Keeps the points of a stage that is being built until they are sent; costs the stage an append."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.started_ms = delivery.now_ms()
        self.is_building = False
        self.points: deque[Metric] = deque(maxlen=MAX_LIVE_POINTS)

    def metric(self, name: str, value: float) -> None:
        """Final figures are sent from the manifest."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep it."""
        self.is_building = True
        self.points.extend(delivery.points_to_metrics([{"step": step, **values}], "", delivery.now_ms()))

    def rewind(self, step: int) -> None:
        """What was sent stays in MLflow: it has no way to take a point back."""

    def say(self, text: str) -> None:
        """A served stage says nothing, so this one is being built."""
        self.is_building = True

    def progress(self, description: str, total: float, unit: str) -> Progress:
        """As above; how far it is, Prefect shows."""
        self.is_building = True
        return Progress(description, total, unit)


class MlflowTracker:
    """See `tasks.track.Tracker`. Failures of MLflow are noted and made up for, never raised, once the run began."""

    def __init__(self, connection: Connection, execution: Execution, report: Report) -> None:
        self._connection = connection
        self._report = report
        self._store = Store(execution.home)
        self._observers: dict[str, StageObserver] = {}
        self._outcomes: list[Outcome] = []
        self._wake = threading.Event()
        self._ending = False
        self._failure = ""
        self._judgement: Judgement | None = None

    def begin(self, record: RunRecord) -> None:
        """Create the run in MLflow and start the thread that tells MLflow the rest.

        Raises:
            ValueError: MLflow refused, before any work was done.
        """
        try:
            record.tracking_run_id = delivery.start_parent(self._connection, record)
        except Exception as error:
            raise ValueError(
                f"The run cannot be recorded at {self._connection.uri}: {error} Use --no-tracking to run without."
            ) from error
        self._record = record
        self._ledger = Ledger(run_id=record.run_id, tracking_uri=self._connection.uri)
        self._lock = hold_ledger(self._store, record.run_id)
        save_ledger(self._store, self._ledger)
        self._thread = threading.Thread(target=self._listen, name="mlflow", daemon=True)
        self._thread.start()

    def stage_observer(self, label: str) -> Reporter:
        """Watch a stage."""
        self._observers[label] = StageObserver(label)
        return self._observers[label]

    def stage_finished(self, outcome: Outcome) -> None:
        """Have it delivered soon."""
        self._outcomes.append(outcome)
        if outcome.status == "built":
            self._wake.set()

    def judged(self, digest: str, role: Role) -> None:
        """Keep it until the run ends."""
        self._judgement = Judgement(digest=digest, role=role)

    def _attach_report(self, record: RunRecord) -> None:
        """Keep its files beside the ledger until they are sent."""
        try:
            for name, data in self._report(self._store, record).items():
                path = _attachments(self._store, record.run_id) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        except OSError as failure:  # a full disk must not hide why the run ended
            console.print(f"The report of {record.run_id} could not be written: {failure}.", markup=False)

    def finish(self, record: RunRecord, status: Status) -> None:
        """Deliver the rest, within FINISH_TIMEOUT_S; what stays is sent by the next run."""
        self._attach_report(record)
        self._ending = True
        self._wake.set()
        self._thread.join(FINISH_TIMEOUT_S)
        if self._thread.is_alive() or self._failure:
            console.print(
                f"MLflow at {self._connection.uri} could not be told everything ({self._failure or 'it is slow'}); "
                "all figures are kept and the next run sends them.",
                markup=False,
            )

    def _listen(self) -> None:
        with self._lock:  # until nothing more can be sent: two that deliver one run at once write its curves twice
            self._attempt_to_catch_up()
            while not self._ending:
                self._wake.wait(LIVE_INTERVAL_S)
                self._wake.clear()
                if not self._ending:
                    self._attempt()
            self._attempt()

    def _attempt_to_catch_up(self) -> None:
        """Earlier runs are nobody's hurry: what fails now is tried by the next run."""
        try:
            catch_up(self._connection, self._store)
        except Exception as error:
            console.print(f"Earlier runs are not in MLflow yet: {error}", markup=False)

    def _attempt(self) -> None:
        """One pass. An error ends it: the next pass, or the next run, makes up for it."""
        try:
            self._send_live()
            self._deliver_outcomes()
            if self._ending:
                self._ledger.judged = self._judgement
                save_ledger(self._store, self._ledger)
                complete(self._connection, self._store, self._ledger, self._record)
            self._failure = ""
        except Exception as error:  # whatever MLflow raises, the run goes on
            self._failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def _send_live(self) -> None:
        for label, observer in list(self._observers.items()):
            if not observer.is_building or label in self._ledger.delivered:
                continue
            run_id = _nested_run(self._connection, self._store, self._ledger, self._record, label, observer.started_ms)
            metrics = [observer.points.popleft() for _ in range(len(observer.points))]
            delivery.send(
                self._connection, run_id, metrics
            )  # where it fails, the delivery from the curve fills the gap

    def _deliver_outcomes(self) -> None:
        outcomes = self._outcomes[:]
        for outcome in outcomes:
            observer = self._observers.get(outcome.label)
            if observer:
                observer.is_building = False
        deliver(self._connection, self._store, self._ledger, self._record, outcomes)
        del self._outcomes[: len(outcomes)]


def _ledger_folder(store: Store) -> Path:
    return tracking_folder(store.home) / "unsent"


def _attachments(store: Store, run_id: str) -> Path:
    return _ledger_folder(store) / run_id


def save_ledger(store: Store, ledger: Ledger) -> None:
    """Write it whole."""
    write_atomically(_ledger_folder(store) / f"{ledger.run_id}.json", ledger.model_dump_json(indent=1).encode())


def hold_ledger(store: Store, run_id: str) -> TextIO:
    """Take the right to deliver this run; the kernel gives it back when we die.

    Raises:
        BlockingIOError: another process has it.
    """
    path = _ledger_folder(store) / f"{run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise
    return stream


def _nested_run(
    connection: Connection, store: Store, ledger: Ledger, record: RunRecord, label: str, started_ms: int
) -> str:
    if label not in ledger.nested:
        ledger.nested[label] = delivery.start_nested(connection, record, label, started_ms)
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
        metrics += delivery.parent_metrics(outcome, points)
        if outcome.status == "built":
            started_ms = delivery.iso_to_ms(outcome.manifest.created) - int(1000 * outcome.manifest.seconds)
            nested = _nested_run(connection, store, ledger, record, outcome.label, started_ms)
            delivery.deliver_nested(connection, nested, outcome, points)
            delivery.deliver_plots(connection, nested, store, outcome)
    delivery.send(connection, record.tracking_run_id, metrics)
    with store.lock("registry", str(record.recipe["name"])):  # two runs that look at once would each add a version
        registry.register_models(connection, record, left, ledger.nested)
    ledger.delivered += [outcome.label for outcome in left]
    save_ledger(store, ledger)


def complete(connection: Connection, store: Store, ledger: Ledger, record: RunRecord) -> None:
    """Deliver whatever is missing of an ended run, close it in MLflow and forget its ledger."""
    deliver(connection, store, ledger, record, _outcomes_of(store, record))
    client, status = connection.client, _MLFLOW_STATUS[record.status]
    if ledger.judged:
        registry.set_role(connection, str(record.recipe["name"]), ledger.judged.digest, ledger.judged.role)
    for label, run_id in ledger.nested.items():
        if label not in ledger.delivered:
            client.set_terminated(run_id, status)
    ended_ms = delivery.iso_to_ms(record.ended) if record.ended else delivery.now_ms()
    delivery.send(
        connection,
        record.tracking_run_id,
        delivery.cost_metrics(store, record, ended_ms),
        tags={"status": record.status, "error": record.error} if record.error else {"status": record.status},
    )
    folder = _attachments(store, record.run_id)
    delivery.deliver_files(connection, record.tracking_run_id, folder)
    client.set_terminated(record.tracking_run_id, status, ended_ms)
    (_ledger_folder(store) / f"{ledger.run_id}.json").unlink(missing_ok=True)
    (_ledger_folder(store) / f"{ledger.run_id}.lock").unlink(missing_ok=True)
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
    for path in sorted(_ledger_folder(store).glob("*.json")):
        try:
            with hold_ledger(store, path.stem):
                _catch_up_one(connection, store, path)
        except BlockingIOError:
            continue  # it is still running


def _catch_up_one(connection: Connection, store: Store, path: Path) -> None:
    ledger = Ledger.model_validate_json(path.read_bytes())
    if ledger.tracking_uri != connection.uri:
        return
    record_path = run_folder(store) / f"{ledger.run_id}.json"
    if record_path.exists():
        complete(connection, store, ledger, RunRecord.model_validate_json(record_path.read_bytes()))
    else:
        path.unlink()
