"""The record of one pipeline run: which stage calls it made and what became of each; everything else is derived."""

import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.mechanism.store import Artifact, Store, StoreDamage, now_utc, write_atomically

Status = Literal["running", "completed", "failed", "cancelled"]


class StageRecord(BaseModel):
    """One stage call of a run."""

    model_config = ConfigDict(extra="forbid")

    label: str
    stage: str
    key: str
    digest: str
    status: Literal["cached", "built"]
    seconds: float
    note: str


class RunRecord(BaseModel):
    """One pipeline run, at `runs/<run_id>.json`; written anew after each stage, so a crash leaves what was known.

    forms: the models that the run ends with, by name the label of the stage call that makes it, in order
    roles: by role (`start`, `candidate`, `served`) the name of a form
    """

    model_config = ConfigDict(extra="forbid")

    run_id: str
    recipe: dict[str, Any]
    command: str
    home: str
    status: Status
    started: str
    ended: str = ""
    error: str = ""
    tracking_run_id: str = ""
    sources: dict[str, str] = {}
    forms: dict[str, str] = {}
    roles: dict[str, str] = {}
    stages: list[StageRecord] = []

    def stage(self, label: str) -> StageRecord | None:
        """The call with this label, if the run came that far."""
        return next((record for record in self.stages if record.label == label), None)

    @property
    def digests(self) -> dict[str, str]:
        """What each call gave, by label."""
        return {record.label: record.digest for record in self.stages}


def new_run_id(name: str) -> str:
    """A name that sorts by time and says what ran: `demo-20260102-030405-1f2e`."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"  # two may begin in one second


def run_folder(store: Store) -> Path:
    """Where run records lie."""
    return store.home / "runs"


def hold_run(store: Store, record: RunRecord) -> AbstractContextManager[None]:
    """Say that the run's process lives, as long as the context is open; the kernel ends it however the process dies."""
    return store.lock("run", record.run_id)


def is_alive(store: Store, record: RunRecord) -> bool:
    """Whether the run goes on. A record alone cannot tell: that of a run whose process died says running for ever."""
    return record.status == "running" and store.is_locked("run", record.run_id)


def save_run(store: Store, record: RunRecord) -> None:
    """Write the record whole."""
    write_atomically(run_folder(store) / f"{record.run_id}.json", record.model_dump_json(indent=1).encode())


def end_run(store: Store, record: RunRecord, status: Status, error: str = "") -> None:
    """Close the record."""
    record.status, record.error, record.ended = status, error, now_utc()
    save_run(store, record)


def list_runs(store: Store) -> list[RunRecord]:
    """All runs, oldest first."""
    records = [RunRecord.model_validate_json(path.read_bytes()) for path in run_folder(store).glob("*.json")]
    return sorted(records, key=lambda record: (record.started, record.run_id))  # `started` tells seconds only


def find_run(store: Store, name: str = "") -> RunRecord:
    """The run with this id or unambiguous beginning; "" is the latest.

    Raises:
        ValueError: there is none, or more than one.
    """
    runs = list_runs(store)
    matches = [record for record in runs if record.run_id.startswith(name)]
    exact = [record for record in matches if record.run_id == name]
    if not runs:
        raise ValueError(f"There is no run in {store.home} yet. Start one with `bessemer run`.")
    if not name:
        return runs[-1]
    if len(exact or matches) == 1:  # a whole id counts, even where others begin with it
        return (exact or matches)[0]
    found = "no run" if not matches else f"{len(matches)} runs"
    raise ValueError(f"{found} in {store.home} start with {name!r}. The latest are: {_latest(runs)}.")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the names that `--set` takes: {"dpo": {"beta": 0.1}} -> {"dpo.beta": 0.1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def artifact_of(store: Store, run: str, label: str) -> Artifact:
    """The artifact that a run's stage call gave; the run by id, beginning or "" for the latest.

    Raises:
        ValueError: the run did not come that far, or the artifact is gone.
    """
    record = find_run(store, run)
    stage = record.stage(label)
    if stage is None:
        raise ValueError(f"The run {record.run_id} ({record.status}) did not come as far as {label}.")
    try:
        return store.open(stage.digest)
    except StoreDamage as damage:
        raise ValueError(f"{label} of {record.run_id}: {damage}. Run the recipe again to rebuild it.") from damage


def _latest(runs: list[RunRecord]) -> str:
    return ", ".join(record.run_id for record in runs[-5:])
