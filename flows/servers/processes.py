"""The servers behind the dashboards: their settings, and how they are started as children."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.addresses import answers, server_folder
from flows.servers.lost_runs import HEARTBEAT_ENVIRONMENT
from tasks.track.connection import local_tracking_uri, tracking_folder

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 120.0  # Prefect's first start migrates its database: 16 s on an idle machine, 41 s on a busy one
STOP_TIMEOUT_S = 15.0
LOG_TAIL_LINES = 15
# What a server that lives as long as one run has no use for; each would poll the database.
_SERVICES_OF_A_SCHEDULE = (
    "SCHEDULER",
    "LATE_RUNS",
    "FOREMAN",
    "PAUSE_EXPIRATIONS",
    "CANCELLATION_CLEANUP",
    "CLEANUP_RECONCILER",
    "TRIGGERS",
)


def prefect_environment(home: Path) -> dict[str, str]:
    """What Prefect reads when it is imported: state under the home, no telemetry, a console that is ours."""
    return {
        "PREFECT_HOME": str(home.resolve() / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # the server would report to Prefect
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Prefect's own 20 s do not cover a first start on a busy machine.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(int(START_TIMEOUT_S)),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # Prefect's lines go to its pages, ours to the console
        "PREFECT_CLI_COLORS": "false",
        # On disk: kept in memory, the slot of a killed run would be taken for ever once the server restarts.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DO_NOT_TRACK": "true",
        **HEARTBEAT_ENVIRONMENT,
    }


def mlflow_environment() -> dict[str, str]:
    """No telemetry, and no job runner: it costs 8 processes and 0.8 GB and serves nothing here."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # MLflow does not understand the usual 1.
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def is_port_free(port: int) -> bool:
    """Whether a server could listen on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server just stopped leaves TIME_WAIT
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A loopback port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Child:
    """A server that we started. It is asked to stop when we are gone, however we go."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def log_tail(self) -> str:
        """The end of what it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to it and all of its group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start_child(home: Path, name: str, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
    """Start a Python module as a child in a process group of its own, its output in a log file under the home."""
    log = server_folder(home) / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.mechanism.launch.lifeline", module, *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches `up` alone, which stops them in order
        )
    return Child(name, process, log)


def wait_until_healthy(child: Child, address: str) -> None:
    """Wait for the server to answer.

    Raises:
        ValueError: it ended or did not answer in START_TIMEOUT_S; with the end of its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(address):
        if child.process.poll() is not None:
            raise ValueError(f"The {child.name} server ended as it started. Its log, {child.log}:\n{child.log_tail()}")
        if time.monotonic() > deadline:
            raise ValueError(
                f"The {child.name} server did not answer at {address} within {START_TIMEOUT_S:.0f} s. "
                f"Its log, {child.log}:\n{child.log_tail()}"
            )
        time.sleep(0.1)


def start_prefect(home: Path, port: int) -> Child:
    """Start Prefect's server with its pages, scheduler and automations."""
    environment = {
        **prefect_environment(home),
        "PREFECT_API_URL": f"http://{LOOPBACK}:{port}/api",
        # Without it the pages of a server on another port than 4200 look for the API on 4200.
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_HOST": LOOPBACK,  # nothing listens beyond this machine (docs/deploy.md)
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    }
    return _start_prefect(home, "prefect", port, environment, log_level="warning")


def start_temporary_prefect(home: Path, port: int) -> Child:
    """Start the server of one run, on the same database as `bessemer up`: no pages, no scheduler.

    It is not what Prefect calls ephemeral, which would leave the training slot with a run that was killed.
    """
    environment = {
        **prefect_environment(home),
        "PREFECT_UI_ENABLED": "0",
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _SERVICES_OF_A_SCHEDULE},
        "PREFECT_API_URL": f"http://{LOOPBACK}:{port}/api",
    }
    return _start_prefect(home, f"prefect-{port}", port, environment, log_level="error")


def _start_prefect(home: Path, name: str, port: int, environment: Mapping[str, str], log_level: str) -> Child:
    where = ["--host", LOOPBACK, "--port", str(port), "--log-level", log_level]
    arguments = ["--factory", "flows.servers.prefect_app:create_app", *where]
    return start_child(home, name, "uvicorn", arguments, environment)


def start_mlflow(home: Path, port: int) -> Child:
    """Start MLflow's server on the database and folder that runs write to."""
    folder = tracking_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = folder / "artifacts"
    arguments = [
        *("server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"),  # each takes 0.2 GB; one person looks
        *("--backend-store-uri", local_tracking_uri(home)),
        # A path in both: an address of the server's (mlflow-artifacts:/) could not be written once it is gone.
        *("--default-artifact-root", str(artifacts), "--artifacts-destination", str(artifacts)),
    ]
    return start_child(home, "mlflow", "mlflow", arguments, mlflow_environment())
