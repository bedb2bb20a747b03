"""A real `bessemer up` for the tests: started, awaited, asked, stopped."""

import asyncio
import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psutil

from flows.addresses import Addresses, live_addresses

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 180


@dataclass(frozen=True)
class Served:
    """A running `bessemer up`."""

    home: Path
    process: subprocess.Popen[str]
    addresses: Addresses


def start_up(home: Path, prefect_port: int, mlflow_port: int, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "flows.cli", "up", "--home", str(home)),
            *("--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port)),
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_servers(home: Path, process: subprocess.Popen[str]) -> Addresses:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        addresses = live_addresses(home)
        if addresses:
            return addresses
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        time.sleep(0.3)
    raise AssertionError("the servers did not start")


def stop(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C or a service manager would."""
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def ask(served: Served, question: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """One conversation with the server, whatever PREFECT_API_URL says."""
    return ask_at(served.addresses.prefect_api, question)


def ask_at(prefect_api: str, question: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """The same, with the server at an address."""
    from prefect.client.orchestration import PrefectClient

    async def asked() -> T:
        async with PrefectClient(prefect_api) as client:
            return await question(client)

    with ThreadPoolExecutor(1) as thread:  # the browser keeps an event loop running in the test's own
        return thread.submit(lambda: asyncio.run(asked())).result()


def begun(prefect_api: str, flow: str, state: str) -> str:
    """A run that began and of which nothing more is heard; its id."""

    async def create(client: Any) -> str:
        from prefect.client.schemas.objects import State, StateType

        body = {"flow_id": str(await client.create_flow_from_name(flow)), "name": f"{flow} {state}"}
        made = await client.request("POST", "/flow_runs/", json=body)
        run_id = str(made.json()["id"])
        await client.set_flow_run_state(run_id, State[Any](type=StateType(state)), force=True)
        return run_id

    return ask_at(prefect_api, create)


def deployments(served: Served) -> list[Any]:
    return ask(served, lambda client: client.read_deployments())


def start_run(served: Served, deployment_id: UUID, parameters: dict[str, Any]) -> UUID:
    """Start a run of a deployment, as its form does; the id of the run."""
    made: UUID = ask(
        served, lambda client: client.create_flow_run_from_deployment(deployment_id, parameters=parameters)
    ).id
    return made


def flow_run(served: Served, flow_run_id: UUID) -> Any:
    return ask(served, lambda client: client.read_flow_run(flow_run_id))


def retry(served: Served, flow_run_id: UUID) -> None:
    """What the button *Retry* of the run's page does."""
    from prefect.client.schemas.objects import State, StateType

    again = State[Any](type=StateType.SCHEDULED, name="AwaitingRetry", message="Retry from the UI")
    ask(served, lambda client: client.set_flow_run_state(flow_run_id, again, force=True))


def log_lines(served: Served, flow_run_id: UUID) -> list[str]:
    """What the run's page shows under *Logs*."""
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    return [line.message for line in ask(served, lambda client: client.read_logs(wanted))]


def wait_until(condition: Callable[[], object], timeout_s: float, what: str, every_s: float = 0.2) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(every_s)


def wait_for_state(served: Served, flow_run_id: UUID, is_it: Callable[[Any], bool], timeout_s: float) -> None:
    """Wait for a state of a flow run; once a second, since each answer costs 0.1 CPU-s."""
    wait_until(lambda: is_it(flow_run(served, flow_run_id).state), timeout_s, "the run's state", every_s=1.0)


def run_processes(served: Served) -> tuple[psutil.Process, list[psutil.Process]]:
    """The worker, and the processes of the runs that it started."""
    ours = psutil.Process(served.process.pid).children(recursive=True)
    worker = next(process for process in ours if "worker" in process.cmdline())
    return worker, worker.children(recursive=True)


def last_checkpoint(home: Path) -> int:
    """The step that unfinished pretraining would go on from; 0 where there is none."""
    found = (home / "scratch" / "pretrain").glob("*/checkpoints/step*.pt")
    return max((int(path.stem.removeprefix("step")) for path in found), default=0)


def foreign_addresses(pid: int) -> set[str]:
    """Where a process and its descendants listen, or whom they talk to, beyond this machine's loopback."""
    root = psutil.Process(pid)
    ours = {pid, *(process.pid for process in root.children(recursive=True))}
    connections = [c for c in psutil.net_connections("inet") if c.pid in ours]
    listening = [c.laddr.ip for c in connections if c.status == "LISTEN"]
    assert listening, "nothing listens at all: the question was asked too early"
    return {ip for ip in (*listening, *(c.raddr.ip for c in connections if c.raddr)) if not _is_loopback(ip)}


def _is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
