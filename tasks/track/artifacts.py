"""What MLflow holds of a built stage's artifact: its manifest, what a person can read of it, and where the rest lies.

A stage need not say which files those are: what it writes in a format for reading is read, a weight or a shard is not.
"""

import json
import socket
import tempfile
from pathlib import Path

from tasks.evaluation.plots import stage_plots
from tasks.mechanism.progress import console
from tasks.mechanism.stage import Outcome
from tasks.mechanism.store import Manifest, Store, file_sha256, list_files
from tasks.track.connection import Connection

READABLE = frozenset({".csv", ".html", ".json", ".jsonl", ".md", ".png", ".svg", ".txt", ".yaml"})
MAX_READABLE_BYTES = 16 << 20  # the tokenizer.json of a vocabulary of 152k, Qwen's, has 11 MB
COLUMNS = ("file", "bytes", "sha256", "address")
_TABLE = "files.json"


def deliver_artifact(connection: Connection, run_id: str, store: Store, outcome: Outcome, mirror: str = "") -> None:
    """Upload the manifest, the plots, the readable files below `artifact/`, and a table of all files.

    `mirror` is the address of the store that several machines share, "" for none: the table then points there.
    """
    client = connection.client
    folder = store.objects / outcome.manifest.digest  # not there where a run is told of late, after `bessemer gc`
    files = list_files(folder)
    with tempfile.TemporaryDirectory() as scratch:
        _write_reports(Path(scratch), store, outcome, files_table(folder, files, mirror))
        client.log_artifacts(run_id, scratch)
    for file in files:
        if file.suffix in READABLE and file.stat().st_size <= MAX_READABLE_BYTES:
            below = file.parent.relative_to(folder).as_posix()
            client.log_artifact(run_id, str(file), "artifact" if below == "." else f"artifact/{below}")
    # By this tag MLflow's page finds what it shows as a table.
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": _TABLE, "type": "table"}]))


def files_table(folder: Path, files: list[Path], mirror: str) -> list[tuple[str, int, str, str]]:
    """A row for each file of an artifact, in the order of COLUMNS.

    The digests cost nothing in the process that built it: it remembers those that it has just published.
    """
    where = f"{mirror}/objects/{folder.name}" if mirror else f"{socket.gethostname()}:{folder}"
    names = [file.relative_to(folder).as_posix() for file in files]
    return [(name, file.stat().st_size, file_sha256(file), f"{where}/{name}") for name, file in zip(names, files)]


def _write_reports(scratch: Path, store: Store, outcome: Outcome, rows: list[tuple[str, int, str, str]]) -> None:
    (scratch / "manifest.json").write_text(_as_text(outcome.manifest))
    (scratch / _TABLE).write_text(json.dumps({"columns": COLUMNS, "data": rows}))
    for name, data in _plots(store, outcome).items():
        (scratch / "plots").mkdir(exist_ok=True)
        (scratch / "plots" / name).write_bytes(data)


def _as_text(manifest: Manifest) -> str:
    return manifest.model_dump_json(indent=1) + "\n"


def _plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    """The stage's pictures. One that cannot be drawn is left out: it must not keep the figures back."""
    try:
        return stage_plots(store, outcome)
    except Exception as error:
        console.print(f"  no plots of {outcome.label}: {error}", markup=False)
        return {}
