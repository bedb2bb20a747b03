"""The tracker of a run: the run only appends to lists, a thread of its own talks to MLflow."""

import threading
from collections import deque
from collections.abc import Mapping

from mlflow.entities import Metric

from tasks.mechanism.execution import Execution
from tasks.mechanism.observe import Reporter
from tasks.mechanism.progress import Progress, console
from tasks.mechanism.runs import RunRecord, Status
from tasks.mechanism.stage import Outcome
from tasks.mechanism.store import Store
from tasks.track.completion import catch_up, complete, deliver, nested_run
from tasks.track.connection import Connection
from tasks.track.delivery import now_ms, points_to_metrics, send, start_parent
from tasks.track.ledger import Judgement, Ledger, attachment_folder, hold_ledger, save_ledger
from tasks.track.pages import run_page
from tasks.track.protocol import Report, Role

LIVE_INTERVAL_S = 3.0  # a batch of 1,000 points takes 0.2 s on SQLite and 0.4 s by HTTP
FINISH_TIMEOUT_S = 120.0  # uploading five models takes its time; a server that is away costs two retries of 20 s
MAX_LIVE_POINTS = 50_000  # of a server that is away; what falls out is delivered from the curve on disk


class StageObserver:
    """Keeps the points of a stage that is being built until they are sent; costs the stage an append."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.started_ms = now_ms()
        self.is_building = False
        self.points: deque[Metric] = deque(maxlen=MAX_LIVE_POINTS)

    def metric(self, name: str, value: float) -> None:
        """Final figures are sent from the manifest."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep it."""
        self.is_building = True
        self.points.extend(points_to_metrics([{"step": step, **values}], "", now_ms()))

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
    """A `Tracker` (protocol.py). Once the run began, failures of MLflow are noted and made up for, never raised."""

    def __init__(self, connection: Connection, execution: Execution, report: Report) -> None:
        self._connection = connection
        self._report = report
        self._store = Store(execution.home)
        self._mirror = execution.mirror
        self._page = ""
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
            info = start_parent(self._connection, record)
        except Exception as error:
            raise ValueError(
                f"The run cannot be recorded at {self._connection.uri}: {error} Use --no-tracking to run without."
            ) from error
        record.tracking_run_id = str(info.run_id)
        self._page = run_page(str(info.experiment_id), str(info.run_id))
        self._record = record
        self._ledger = Ledger(run_id=record.run_id, tracking_uri=self._connection.uri, mirror=self._mirror)
        # Held before it can be seen: catching up, another run would deliver this one as dead.
        self._lock = hold_ledger(self._store, record.run_id)
        save_ledger(self._store, self._ledger)
        # A daemon: a server that hangs must not keep an ended run's process alive.
        self._thread = threading.Thread(target=self._listen, name="mlflow", daemon=True)
        self._thread.start()

    def page(self) -> str:
        """The run's page below the server's address."""
        return self._page

    def stage_observer(self, label: str) -> Reporter:
        """Watch a stage."""
        self._observers[label] = StageObserver(label)
        return self._observers[label]

    def stage_finished(self, outcome: Outcome) -> None:
        """Have it delivered soon."""
        self._outcomes.append(outcome)
        if outcome.status == "built":  # cached ones wait for the next round: all of a run's in one call
            self._wake.set()

    def judged(self, digest: str, role: Role) -> None:
        """Keep it until the run ends."""
        self._judgement = Judgement(digest=digest, role=role)

    def _attach_report(self, record: RunRecord) -> None:
        """Keep its files beside the ledger until they are sent."""
        try:
            for name, data in self._report(self._store, record).items():
                path = attachment_folder(self._store, record.run_id) / name
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
        for label, observer in list(self._observers.items()):  # a copy: the run adds stages meanwhile
            if not observer.is_building or label in self._ledger.delivered:
                continue
            run_id = nested_run(self._connection, self._store, self._ledger, self._record, label, observer.started_ms)
            # No lock: append and popleft of a deque are atomic, and only this thread takes.
            metrics = [observer.points.popleft() for _ in range(len(observer.points))]
            send(self._connection, run_id, metrics)  # where it fails, the delivery from the curve fills the gap

    def _deliver_outcomes(self) -> None:
        outcomes = self._outcomes[:]
        for outcome in outcomes:
            observer = self._observers.get(outcome.label)
            if observer:
                observer.is_building = False
        deliver(self._connection, self._store, self._ledger, self._record, outcomes)
        del self._outcomes[: len(outcomes)]  # the run may have appended meanwhile
