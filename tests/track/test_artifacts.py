"""From a stage's run in MLflow to the bytes: its manifest, what a person can read, and where the rest lies."""

import hashlib
import json
import shutil
from pathlib import Path

from pydantic import Field

from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Outcome, StageConfig, StageRun, stage
from tasks.mechanism.store import Manifest, Store
from tasks.track import Untracked, open_tracker
from tasks.track.artifacts import MAX_READABLE_BYTES
from tasks.track.connection import connect
from tasks.track.delivery import start_parent
from tasks.track.ledger import Ledger, save_ledger
from tests.helpers.mechanism_stages import CountConfig, count
from tests.helpers.track import ToyRun, client_of, nested_runs


class WriteConfig(StageConfig):
    """What to write."""

    large: int = Field(0, ge=0, description="Bytes of a report that nobody wants to read.")


FILES = {"verdict.json": b'{"promote": true}', "shards/errors.jsonl": b"{}\n", "weights.safetensors": b"\0" * 10}


@stage("write", version=1)
def write(run: StageRun, cfg: WriteConfig) -> None:
    """Write a verdict, some errors and some weights."""
    for name, data in {**FILES, **({"large.txt": b" " * cfg.large} if cfg.large else {})}.items():
        (run.out / name).parent.mkdir(exist_ok=True)
        (run.out / name).write_bytes(data)


def built(execution: Execution, config: WriteConfig, folder: Path) -> tuple[Outcome, Path]:
    """A run of the stage, and what MLflow has of it."""
    run = ToyRun(execution, open_tracker(execution))
    outcome = run.call(write, config, "gate")
    run.end()
    client = client_of(execution)
    nested = nested_runs(client, run.record.tracking_run_id)["gate"]
    folder.mkdir(exist_ok=True)
    assert json.loads(nested.data.tags["mlflow.loggedArtifacts"]) == [{"path": "files.json", "type": "table"}]
    return outcome, Path(client.download_artifacts(nested.info.run_id, "", str(folder)))


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_a_person_can_read_is_there_and_the_rest_is_told_by_address_and_digest(
    execution: Execution, tmp_path: Path
) -> None:
    outcome, logged = built(execution, WriteConfig(large=MAX_READABLE_BYTES + 1), tmp_path / "logged")
    assert Manifest.model_validate_json((logged / "manifest.json").read_bytes()) == outcome.manifest
    assert names_below(logged / "artifact") == {"verdict.json", "shards/errors.jsonl"}
    assert (logged / "artifact" / "verdict.json").read_bytes() == FILES["verdict.json"]
    table = json.loads((logged / "files.json").read_text())
    rows = {row[0]: dict(zip(table["columns"], row)) for row in table["data"]}
    assert set(rows) == {*FILES, "large.txt"}
    for name, row in rows.items():
        data = Path(row["address"].partition(":")[2]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["bytes"], row["sha256"])
        assert data == FILES.get(name, b" " * (MAX_READABLE_BYTES + 1))


def test_where_machines_share_a_store_the_address_is_there(execution: Execution, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    outcome, logged = built(execution.model_copy(update={"mirror": str(mirror)}), WriteConfig(), tmp_path / "logged")
    shutil.rmtree(Store(execution.home).objects)
    rows = json.loads((logged / "files.json").read_text())["data"]
    assert {row[0]: Path(row[3]).read_bytes() for row in rows} == FILES
    assert all(outcome.artifact.digest in row[3] for row in rows)


def test_a_run_that_is_told_of_after_its_artifact_was_collected_is_told_of_all_the_same(
    execution: Execution, tmp_path: Path
) -> None:
    run = ToyRun(execution, Untracked())
    run.call(count, CountConfig(limit=3), "count")
    connection = connect(execution)
    run.record.tracking_run_id = str(start_parent(connection, run.record).run_id)
    save_ledger(run.store, Ledger(run_id=run.record.run_id, tracking_uri=connection.uri))
    run.end()  # as a process leaves it that MLflow was away from
    shutil.rmtree(run.store.objects)
    (tmp_path / "logged").mkdir()
    ToyRun(execution, open_tracker(execution)).end()
    nested = nested_runs(connection.client, run.record.tracking_run_id)["count"]
    logged = Path(connection.client.download_artifacts(nested.info.run_id, "", str(tmp_path / "logged")))
    assert names_below(logged) == {"manifest.json", "files.json"}
    assert json.loads((logged / "files.json").read_text())["data"] == []
