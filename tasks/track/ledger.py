"""What of a run MLflow has been told, kept on disk until it is all: so that a later run can tell the rest."""

import fcntl
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel, ConfigDict

from tasks.mechanism.store import Store, write_atomically
from tasks.track.connection import tracking_folder
from tasks.track.protocol import Role


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
    mirror: str = ""
    nested: dict[str, str] = {}
    delivered: list[str] = []
    judged: Judgement | None = None


def ledger_folder(store: Store) -> Path:
    """Where the ledgers of runs that MLflow does not have whole lie."""
    return tracking_folder(store.home) / "unsent"


def ledgers(home: Path) -> list[Path]:
    """Those of runs that go on, and of runs that ended before MLflow had all; oldest first."""
    return sorted((tracking_folder(home) / "unsent").glob("*.json"))


def attachment_folder(store: Store, run_id: str) -> Path:
    """Where a run's reports wait to be sent."""
    return ledger_folder(store) / run_id


def save_ledger(store: Store, ledger: Ledger) -> None:
    """Write it whole."""
    write_atomically(ledger_folder(store) / f"{ledger.run_id}.json", ledger.model_dump_json(indent=1).encode())


def drop_ledger(store: Store, run_id: str) -> None:
    """Forget a run that MLflow has whole."""
    for suffix in ("json", "lock"):
        (ledger_folder(store) / f"{run_id}.{suffix}").unlink(missing_ok=True)


def hold_ledger(store: Store, run_id: str) -> TextIO:
    """Take the right to deliver this run; flock(2), since the kernel gives it back however we die.

    Raises:
        BlockingIOError: another process has it.
    """
    path = ledger_folder(store) / f"{run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise
    return stream
