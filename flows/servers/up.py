"""`bessemer up`: Prefect's server, MLflow's server and a worker as one, until Ctrl-C; loopback only."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from flows.addresses import Addresses, forget_addresses, save_addresses, server_folder
from flows.servers.deployed import fingerprint
from flows.servers.deployments import COLLISION_STRATEGIES, WORK_POOL, Overlap
from flows.servers.processes import (
    LOOPBACK,
    START_TIMEOUT_S,
    Child,
    is_port_free,
    prefect_environment,
    start_child,
    start_mlflow,
    start_prefect,
    wait_until_healthy,
)
from flows.servers.unfinished import ask_for_signs_of_life
from tasks.mechanism.progress import console
from tasks.mechanism.store import Store, write_atomically
from tasks.track.connection import quiet_environment
from tasks.track.ledger import ledgers
from tasks.track.pages import latest_page

POLL_S = 0.5  # between looks at whether all children live


class Stopped(BaseException):
    """Somebody asked us to stop."""


def serve(home: Path, prefect_port: int, mlflow_port: int, overlap: Overlap = "wait") -> None:
    """Run the servers and a worker until SIGINT or SIGTERM, or until one of them ends.

    `overlap` says what becomes of a look for new text that is due while another of its deployment is under way.

    Raises:
        ValueError: a port is taken, another `up` serves this home, or a server ended by itself.
    """
    Store(home)  # refuses a home of another format before a port is taken
    os.environ["BESSEMER_OVERLAP"] = COLLISION_STRATEGIES[overlap]
    with _only_one(home), _raise_on_signals(), ExitStack() as running:
        _check_port(prefect_port, "--prefect-port", "Prefect's")  # after the lock, whose holder's ports they may be
        _check_port(mlflow_port, "--mlflow-port", "MLflow's")
        try:
            children = _start_all(home, prefect_port, mlflow_port, running)
            _watch(children)
        except Stopped:
            console.print("\nStopping the servers.")


def _start_all(home: Path, prefect_port: int, mlflow_port: int, running: ExitStack) -> list[Child]:
    addresses = Addresses(
        prefect=f"http://{LOOPBACK}:{prefect_port}", mlflow=f"http://{LOOPBACK}:{mlflow_port}", pid=os.getpid()
    )
    quiet_environment()
    os.environ.update(prefect_environment(home))
    os.environ.update(PREFECT_API_URL=addresses.prefect_api, BESSEMER_HOME=str(home.resolve()))
    console.print("Starting the servers (the first time they also create their databases).")
    prefect = _kept(start_prefect(home, prefect_port), running)
    mlflow = _kept(start_mlflow(home, mlflow_port), running)  # starts beside Prefect, and is waited for last
    wait_until_healthy(prefect, f"{addresses.prefect_api}/health")
    _deploy(home, running)
    ask_for_signs_of_life(addresses.prefect_api)  # before there is a worker: what is unfinished now, another one began
    worker = _kept(_start_worker(home), running)
    wait_until_healthy(mlflow, f"{addresses.mlflow}/health")
    if ledgers(home):
        _kept(start_child(home, "catch-up", "tasks.track.completion", [str(home.resolve())], {}), running)
    # Once all is up: `bessemer run` goes to the servers that it finds here.
    save_addresses(home, addresses)
    running.callback(forget_addresses, home)
    print(f"Prefect: {addresses.prefect}\nMLflow:  {addresses.mlflow}/{latest_page(addresses.mlflow)}", flush=True)
    console.print(f"Runs are started from Prefect's page or by `bessemer run`. Logs: {server_folder(home)}")
    console.print("Ctrl-C stops everything.")
    return [prefect, mlflow, worker]


def _kept(child: Child, running: ExitStack) -> Child:
    """Have the child stopped on the way out, the last started first."""
    running.callback(child.stop)
    return child


def _deploy(home: Path, running: ExitStack) -> None:
    """Deploy the recipes, unless all that it depends on is as it was when this home's database was last told."""
    marker = home / "prefect" / "deployed.sha256"
    wanted = fingerprint(home)
    if marker.exists() and marker.read_text() == wanted:
        return
    child = _kept(start_child(home, "deploy", "flows.servers.deployments", ["apply"], {}), running)
    deadline = time.monotonic() + START_TIMEOUT_S
    while child.process.poll() is None:
        if time.monotonic() > deadline:
            raise ValueError(f"The recipes were not deployed within {START_TIMEOUT_S:.0f} s:\n{child.log_tail()}")
        time.sleep(0.1)
    if child.process.returncode != 0:
        raise ValueError(f"The recipes could not be deployed. Their log, {child.log}:\n{child.log_tail()}")
    write_atomically(marker, wanted.encode())


def _start_worker(home: Path) -> Child:
    return start_child(
        home, "worker", "prefect", ["worker", "start", "--pool", WORK_POOL, "--name", f"bessemer-{os.getpid()}"], {}
    )


def _watch(children: list[Child]) -> None:
    """Return never; raise when one of them is gone."""
    while True:
        for child in children:
            if child.process.poll() is not None:
                raise ValueError(
                    f"The {child.name} process ended by itself (exit code {child.process.returncode}), so the others "
                    f"were stopped. Its log, {child.log}:\n{child.log_tail()}"
                )
        time.sleep(POLL_S)


def _check_port(port: int, option: str, whose: str) -> None:
    if not is_port_free(port):
        raise ValueError(
            f"Port {port} is taken by another process, so {whose} server cannot listen on it. Stop that process, or "
            f"choose another port with {option}."
        )


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Refuse a second `up` for the same home; the kernel frees the lock however its holder ends."""
    path = server_folder(home) / "up.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:  # not "w": it would wipe the holder's number
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"`bessemer up` already serves {home.resolve()} (process {_holder(stream)}). Use its dashboards, or "
                "stop it first."
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _holder(stream: TextIO) -> str:
    stream.seek(0)
    return stream.read() or "unknown"


@contextmanager
def _raise_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM stop us in an orderly way, once; while we are stopping, more of them change nothing."""

    def stop(number: int, frame: FrameType | None) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)  # a second Ctrl-C must not cut the stopping off
        raise Stopped

    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
