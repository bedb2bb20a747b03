"""`prefect.yaml`, written from the presets, and what a server must hold before it can run it.

`python -m flows.servers.deployments` prints the file; the one at the root of a checkout is there for Prefect's own
`prefect deploy`, and a test keeps it equal. `... apply` makes the work pool, the training slot and the automation for
lost runs where they are missing and deploys, from the presets and not from a file, so that it needs no checkout; doing
it again changes nothing. Flows are named by module, so that a worker imports what is installed.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from flows.addresses import server_folder
from flows.recipe import PRESET_FOLDER, Recipe, load_plan, preset_names
from flows.servers.lost_runs import AUTOMATION, HEARTBEAT_ENVIRONMENT, lost_runs_automation, renewed
from flows.servers.notify import EVENT, RESOURCE
from tasks.mechanism.execution import Execution
from tasks.mechanism.store import write_atomically

WORK_POOL = "bessemer"
TRAINING_SLOT = "gpu"
HOME_TEMPLATE = "{{ $BESSEMER_HOME }}"
TRACKING_TEMPLATE = "{{ $BESSEMER_TRACKING_URI }}"
OVERLAP_TEMPLATE = "{{ $BESSEMER_OVERLAP }}"
Overlap = Literal["wait", "skip"]
COLLISION_STRATEGIES: dict[Overlap, str] = {"wait": "ENQUEUE", "skip": "CANCEL_NEW"}
"""What becomes of a look for new text that would overlap another of its deployment, in Prefect's words."""
_HEADER = """\
# What can be started from Prefect's pages: each preset as a deployment that opens prefilled.
# Written by `python -m flows.servers.deployments > prefect.yaml`; edit the presets in flows/recipes instead.
# `bessemer up` deploys it; by hand: BESSEMER_HOME=/path/to/.bessemer python -m flows.servers.deployments apply
"""
_ONE_LOOK_AT_A_TIME = {"limit": 1, "collision_strategy": OVERLAP_TEMPLATE}


def prefect_yaml() -> str:
    """The text of `prefect.yaml`."""
    presets = [_preset_deployment(name) for name in preset_names()]
    flows = [*presets, _watch_deployment("nightly"), _event_deployment(), _backfill_deployment()]
    content = {"name": "bessemer", "deployments": flows}
    return _HEADER + yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True)


def _preset_deployment(name: str) -> dict[str, Any]:
    plan = load_plan(name)
    return {
        "name": name,
        "description": _description(name),
        "entrypoint": "flows.pipeline.bessemer",
        "tags": ["bessemer"],
        "parameters": {
            "recipe": recipe_parameters(plan.recipe),
            "execution": execution_parameters(plan.execution),
        },
        "work_pool": _work_pool(),
    }


def _watch_deployment(name: str) -> dict[str, Any]:
    """New text once a night; off until somebody says where it arrives."""
    return _new_text_deployment(
        name,
        "Look for new text at two in the night; prepare it, and train when it has grown enough.",
        "flows.watch.ingest",
        schedules=[{"cron": "0 2 * * *", "timezone": "UTC", "active": False}],
        # A copy: of one dict at two places YAML would write an anchor and an alias.
        concurrency_limit=dict(_ONE_LOOK_AT_A_TIME),
    )


def _event_deployment() -> dict[str, Any]:
    """New text as soon as `bessemer notify PATH` says that it is there."""
    trigger = {
        "type": "event",
        "enabled": True,
        "match": {"prefect.resource.id": f"{RESOURCE}.*"},
        "expect": [EVENT],
        "parameters": {"recipe": {"corpus": "{{ event.payload.path }}"}},
    }
    return _new_text_deployment(
        "on-arrival",
        "Look for new text in the folder that `bessemer notify PATH` names.",
        "flows.watch.ingest",
        triggers=[trigger],
        concurrency_limit=dict(_ONE_LOOK_AT_A_TIME),
    )


def _backfill_deployment() -> dict[str, Any]:
    """Dated folders of the past; the form asks for the corpus and the dates."""
    return _new_text_deployment(
        "dates",
        "Take in a past range of dated folders, one increment after another, oldest first.",
        "flows.backfill.backfill",
    )


def _new_text_deployment(name: str, description: str, entrypoint: str, **more: Any) -> dict[str, Any]:
    """A flow that takes in new text and trains once there is enough of it."""
    return {
        "name": name,
        "description": description,
        "entrypoint": entrypoint,
        "tags": ["bessemer"],
        "parameters": {"watch": {"retrain": "when grown"}, "execution": execution_parameters(Execution())},
        **more,
        "work_pool": _work_pool(),
    }


def _work_pool() -> dict[str, Any]:
    """Where a deployment's runs go, and what their processes find in their environment on any kind of worker."""
    return {"name": WORK_POOL, "job_variables": {"env": dict(HEARTBEAT_ENVIRONMENT)}}


def recipe_parameters(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says beyond the defaults."""
    return _beyond_the_form(Recipe, recipe.model_dump(mode="json"), Recipe().model_dump(mode="json"))


def _beyond_the_form(kind: Any, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that either the form or the pipeline would fill in otherwise.

    Of a section that is given in part Prefect's form takes the rest from the defaults of the section's type, which
    stages share; we take it from the stage's own.
    """
    usual = TypeAdapter(kind).dump_python(kind(), mode="json")
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value == defaults[name] == usual[name]:
            continue
        section = kind.__pydantic_fields__[name].annotation
        is_section = hasattr(section, "__pydantic_fields__")
        found[name] = _beyond_the_form(section, value, defaults[name]) if is_section else value
    return found


def execution_parameters(execution: Execution) -> dict[str, Any]:
    """What a preset says of the machine; home and tracking server are those of whoever deploys."""
    return {
        **difference(execution.model_dump(mode="json"), Execution().model_dump(mode="json")),
        "home": HOME_TEMPLATE,
        "tracking_uri": TRACKING_TEMPLATE,
    }


def _description(name: str) -> str:
    return str(yaml.safe_load((PRESET_FOLDER / f"{name}.yaml").read_text())["description"])


def difference(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are not the defaults, at any depth."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = difference(value, defaults[name])
            if inner:
                found[name] = inner
        elif value != defaults[name]:
            found[name] = value
    return found


async def prepare_server() -> None:
    """Make the work pool, the training slot and the automation; what is there stays: somebody may have changed it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    async with get_client() as client:
        # Tried, not looked up: two that prepare a server at once both succeed.
        with contextlib.suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))
        try:
            await client.read_global_concurrency_limit_by_name(TRAINING_SLOT)
        except ObjectNotFound:
            # One training at a time; raised on Prefect's page, it stays as it is set there (docs/deploy.md).
            await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=TRAINING_SLOT, limit=1))
        found = await client.read_automations_by_name(AUTOMATION)
        if not found:
            await client.create_automation(lost_runs_automation())
        for automation in found:
            if wanted := renewed(automation):
                await client.update_automation(automation.id, wanted)


def apply() -> None:
    """Prepare the server at PREFECT_API_URL and hand over to Prefect's own `deploy`.

    Runs of the deployments begin in the folder where this is called: a relative path typed into a form starts there.
    """
    home = Path(os.environ.setdefault("BESSEMER_HOME", str(Path(".bessemer").resolve())))
    os.environ.setdefault("BESSEMER_OVERLAP", COLLISION_STRATEGIES["wait"])
    os.environ.setdefault("BESSEMER_TRACKING_URI", "")  # where it is not set, Prefect would keep the placeholder
    asyncio.run(prepare_server())
    file = server_folder(home) / "prefect.yaml"
    write_atomically(file, prefect_yaml().encode())
    deploy = ["--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    os.execv(sys.executable, [sys.executable, "-m", "prefect", *deploy])


if __name__ == "__main__":
    if sys.argv[1:] == ["apply"]:
        apply()
    else:
        sys.stdout.write(prefect_yaml())
