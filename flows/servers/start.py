"""Start a run under Prefect: on the server that is up under this home, else on one that lives as long as the run."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flows.addresses import live_addresses
from flows.backfill_plan import Dates
from flows.recipe import Recipe
from flows.servers.processes import (
    LOOPBACK,
    free_port,
    prefect_environment,
    start_temporary_prefect,
    wait_until_healthy,
)
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord

if TYPE_CHECKING:
    from flows.show.backfill import Backfilled


def run_with_prefect(recipe: Recipe, execution: Execution) -> RunRecord:
    """Run the pipeline as a Prefect flow and return its record; the run shows in the dashboard later.

    Raises:
        ValueError: a stage refused its input, or the server did not start.
        KeyboardInterrupt: we were asked to stop, by Ctrl-C or SIGTERM.
    """
    with _flows(execution):
        from flows.pipeline import bessemer

        return bessemer(recipe, execution)


def backfill_with_prefect(recipe: Recipe, dates: Dates, watch: Mapping[str, Any], execution: Execution) -> "Backfilled":
    """Take in dated folders as a Prefect flow; each date is a run of its own in the dashboard.

    Raises:
        ValueError: there is nothing to take in, a date could not be taken in, or the server did not start.
        KeyboardInterrupt: we were asked to stop, by Ctrl-C or SIGTERM.
    """
    with _flows(execution):
        from flows.backfill import backfill
        from flows.watched import WatchConfig

        return backfill(recipe, dates, WatchConfig.model_validate(watch), execution)


@contextmanager
def _flows(execution: Execution) -> Iterator[None]:
    """Have a server, and be stopped as anything else is."""
    with prefect_server(execution):
        from prefect.exceptions import TerminationSignal

        try:
            yield
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
            try:
                yield address
            finally:
                _send_logs()
    finally:
        child.stop()
        child.log.unlink(missing_ok=True)  # each run would leave one behind


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
