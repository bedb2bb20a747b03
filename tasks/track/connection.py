"""Where MLflow keeps things, and the client that reaches it; no telemetry, short retries, no stray folders."""

import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks.mechanism.execution import Execution

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

HEALTH_TIMEOUT_S = 5.0
# Set before MLflow is imported. Its own defaults are 7 retries of up to 120 s each: a server that goes away would be
# waited for during minutes at the end of a run. A user's own values win.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # else the client calls config.mlflow-telemetry.io
    "DO_NOT_TRACK": "true",  # MLflow does not understand the usual 1
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class Connection:
    """A client of one tracking server or database. `artifact_root` is "" where a server decides on it."""

    client: "MlflowClient"
    uri: str
    artifact_root: str


def tracking_folder(home: Path) -> Path:
    """The folder of MLflow's database and artifacts where no server is named."""
    return home.resolve() / "mlflow"


def local_tracking_uri(home: Path) -> str:
    """The SQLite database under the home folder."""
    return f"sqlite:///{tracking_folder(home) / 'mlflow.db'}"


def quiet_environment() -> None:
    """Set what MLflow reads when it is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # announces each new database in two lines


def connect(execution: Execution) -> Connection:
    """Reach the tracking server or open the database.

    Raises:
        ValueError: it does not answer, or refuses us, or the address holds a password.
    """
    quiet_environment()
    if urlsplit(execution.tracking_uri).password:
        raise ValueError(
            "execution.tracking_uri holds a password, which would be shown wherever settings are. Leave it out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (server) or PGPASSWORD (PostgreSQL) instead."
        )
    folder = tracking_folder(execution.home)
    folder.mkdir(parents=True, exist_ok=True)
    uri = execution.tracking_uri or local_tracking_uri(execution.home)
    is_server = uri.startswith(("http://", "https://"))
    if is_server:
        _check_health(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    # The registry too, whatever MLFLOW_REGISTRY_URI says: versions name runs of the same place.
    client = MlflowClient(uri, uri)
    try:
        client.get_experiment_by_name("bessemer")  # any name: it shows whether we are let in
    except (MlflowException, OSError) as error:
        raise ValueError(
            f"The tracking address {uri} cannot be used: {str(error).splitlines()[0]} Check execution.tracking_uri "
            "and the credentials in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or use --no-tracking."
        ) from error
    return Connection(client, uri, "" if is_server else str(folder / "artifacts"))


def _check_health(uri: str) -> None:
    """Ask the server once, before MLflow's own retries make a person wait."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_S):
            return
    except urllib.error.HTTPError:
        return  # it is there; whether it lets us in, the first real call tells
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"The MLflow server at {uri} does not answer ({reason}). Start it (`bessemer up` starts one), correct "
            "execution.tracking_uri, or use --no-tracking."
        ) from error
