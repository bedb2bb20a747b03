"""A real `bessemer up` for the tests: started, awaited, asked, stopped."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flows.servers import Addresses, live_addresses

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 180


@dataclass(frozen=True)
class Served:
    """A running `bessemer up`."""

    home: Path
    process: subprocess.Popen[str]
    addresses: Addresses


def start_up(home: Path, prefect_port: int, mlflow_port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "flows.cli", "up", "--home", str(home)),
            *("--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port)),
        ],
        cwd=ROOT,
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


def deployments(served: Served) -> list[Any]:
    return ask(served, lambda client: client.read_deployments())
