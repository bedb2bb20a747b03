"""Start a run under Prefect: on the server that is up under this home, else on one that lives as long as the run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flows.recipe import Recipe
from flows.servers import (
    LOOPBACK,
    free_port,
    live_addresses,
    prefect_environment,
    start_temporary_prefect,
    wait_until_healthy,
)
from tasks.execution import Execution
from tasks.runs import RunRecord


def run_with_prefect(recipe: Recipe, execution: Execution) -> RunRecord:
    """Run the pipeline as a Prefect flow and return its record; the run shows in the dashboard later.

    Raises:
        ValueError: a stage refused its input, or the server did not start.
        KeyboardInterrupt: we were asked to stop, by Ctrl-C or SIGTERM.
    """
    with prefect_server(execution):
        from prefect.exceptions import TerminationSignal

        from flows.pipeline import bessemer

        try:
            return bessemer(recipe, execution)
        except TerminationSignal:
            raise KeyboardInterrupt from None


@contextmanager
def prefect_server(execution: Execution) -> Iterator[str]:
    """Yield the address of a server's API, with Prefect set up to use it: the one that is up, or one of our own."""
    home = execution.home
    os.environ.update(prefect_environment(home))
    addresses = live_addresses(home)
    if addresses:
        with _using(addresses.prefect_api):
            yield addresses.prefect_api
        return
    port = free_port()
    address = f"http://{LOOPBACK}:{port}/api"
    child = start_temporary_prefect(home, port)
    try:
        with _using(address):
            _import_meanwhile()
            wait_until_healthy(child, f"{address}/health")
            yield address
            _send_logs()
    finally:
        child.stop()
        child.log.unlink(missing_ok=True)


@contextmanager
def _using(address: str) -> Iterator[None]:
    """Point Prefect at a server. It reads the environment once, when it is imported, and that may have been before."""
    os.environ["PREFECT_API_URL"] = address
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: address}):
        yield


def _import_meanwhile() -> None:
    """Import what the run needs while the server starts: they take about as long as each other."""
    import flows.pipeline  # noqa: F401
    import tasks.track.tracker  # noqa: F401


def _send_logs() -> None:
    """Prefect sends lines in the background; what is left must arrive while there is a server."""
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
