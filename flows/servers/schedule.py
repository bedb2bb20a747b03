"""When a running `bessemer up` looks for new text: each recipe has a deployment of `ingest` of its own for that."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.addresses import Addresses, required_addresses
from flows.recipe import Plan, Recipe
from flows.run import check_training, resolve_sources
from flows.servers.deployments import execution_parameters, recipe_parameters
from flows.servers.notify import UNAUTHORIZED
from flows.servers.processes import prefect_environment
from tasks.mechanism.execution import Execution
from tasks.text.source import absolute

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.server.schemas.schedules import CronSchedule

FLOW = "ingest"
PATTERN = f"{FLOW}/nightly"  # one of those made by `up`: how and where such a flow runs here
SOURCES = ("corpus", "sft_data", "preference_data", "benchmarks")
_AS_THE_PATTERN = (
    "tags", "path", "entrypoint", "pull_steps", "work_pool_name", "job_variables", "parameter_openapi_schema",
    "enforce_parameter_schema", "concurrency_options",
)  # fmt: skip


@dataclass(frozen=True)
class Scheduled:
    """What now looks for new text, and when next."""

    deployment: str
    page: str
    next_look: datetime


def schedule(plan: Plan, watch: Mapping[str, Any], cron: str, timezone: str) -> Scheduled:
    """Make, or change, the deployment that looks for new text for this recipe; those of `up` stay as they are.

    Raises:
        ValueError: no server is up for this home, there is no text, or the schedule cannot be read.
    """
    home = plan.execution.home
    named = {name: getattr(plan.recipe, name) for name in SOURCES}
    recipe = plan.recipe.model_copy(update={name: absolute(spec) for name, spec in named.items() if spec})
    with _client(home) as (client, addresses):
        when = _read_cron(cron, timezone)
        check_training(recipe, plan.execution)  # a mistake shows now, not in the night
        resolve_sources(recipe, plan.execution)
        deployment_id = _deploy(client, recipe, plan.execution, watch, when)
    page = f"{addresses.prefect}/deployments/deployment/{deployment_id}"
    return Scheduled(f"{FLOW}/{recipe.name}", page, asyncio.run(when.get_dates(n=1))[0])


def unschedule(home: Path, recipe_name: str) -> None:
    """Remove what `schedule` made; looks that were due are removed with it.

    Raises:
        ValueError: no server is up for this home, or nothing looks for this recipe.
    """
    from prefect.exceptions import ObjectNotFound

    with _client(home) as (client, addresses):
        try:
            found = client.read_deployment_by_name(f"{FLOW}/{recipe_name}")
        except ObjectNotFound:
            raise ValueError(
                f"Nothing looks for new text for the recipe '{recipe_name}'. What does is listed at "
                f"{addresses.prefect}/deployments."
            ) from None
        client.delete_deployment(found.id)


def _deploy(
    client: "SyncPrefectClient", recipe: Recipe, execution: Execution, watch: Mapping[str, Any], when: "CronSchedule"
) -> UUID:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    pattern = client.read_deployment_by_name(PATTERN)
    # What deploying has put for {{ $BESSEMER_HOME }} and the tracking address: here nothing would.
    here = {name: pattern.parameters["execution"][name] for name in ("home", "tracking_uri")}
    limit = pattern.global_concurrency_limit
    return client.create_deployment(  # also changes one of that name
        pattern.flow_id,
        recipe.name,
        description=f"Look for new text in {recipe.corpus}; made by `bessemer schedule`.",
        schedules=[DeploymentScheduleCreate(schedule=CronSchedule(**when.model_dump()), active=True)],
        parameters={
            "recipe": recipe_parameters(recipe),
            "watch": dict(watch),
            "execution": execution_parameters(execution) | here,
        },
        concurrency_limit=limit.limit if limit else None,
        **{name: getattr(pattern, name) for name in _AS_THE_PATTERN},
    )


def _read_cron(cron: str, timezone: str) -> "CronSchedule":
    # The server's class, not the client's of that name: it alone can tell the next date.
    from prefect.server.schemas.schedules import CronSchedule

    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        raise ValueError(
            f"--cron is {cron!r} and --timezone {timezone!r}; expected minute, hour, day, month and weekday, such as "
            "'0 2 * * *', and the name of a zone, such as Europe/Berlin."
        ) from error


@contextmanager
def _client(home: Path) -> Iterator[tuple["SyncPrefectClient", Addresses]]:
    """A conversation with the servers that are up for this home."""
    addresses = required_addresses(home)
    os.environ.update(prefect_environment(home))
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.exceptions import PrefectHTTPStatusError

    login = os.environ.get("PREFECT_API_AUTH_STRING")
    try:
        with SyncPrefectClient(addresses.prefect_api, auth_string=login) as client:
            yield client, addresses
    except PrefectHTTPStatusError as refusal:
        if refusal.response.status_code != UNAUTHORIZED:
            raise
        raise ValueError(
            f"Prefect at {addresses.prefect} refused us. Set PREFECT_API_AUTH_STRING to the server's `user:password`."
        ) from refusal
