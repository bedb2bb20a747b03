"""What people do day to day, in a real browser against a real `bessemer up`: start a run from the form, compare two.

BESSEMER_SCREENSHOTS=docs/images takes the pictures of the README anew.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil
import pytest

from flows.recipe import Recipe, load_plan
from flows.servers.deployments import WORK_POOL, difference
from flows.servers.processes import free_port
from flows.verify import verify_run
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import find_run, list_runs
from tasks.mechanism.sections import merge
from tasks.mechanism.store import Store
from tasks.track.pages import latest_page
from tests.conftest import require_program
from tests.helpers import tiny
from tests.helpers.up import (
    Served,
    ask,
    deployments,
    flow_run,
    last_checkpoint,
    log_lines,
    run_processes,
    start_run,
    start_up,
    stop,
    wait_for_servers,
    wait_for_state,
    wait_until,
)

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.slow
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
RUN_TIMEOUT_S = 240
SECRET = "planted-bb5f1d"
SECRETS = dict.fromkeys(
    ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "SLACK_WEBHOOK_URL"), SECRET
)
LONG_STEPS = 800  # about 10 s: time to open the menu and to be told of the cancel


@dataclass(frozen=True)
class Tiny:
    """The deployment that the tests start, beside those of the presets."""

    served: Served
    id: UUID


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    require_program("chromium")
    folder = tmp_path_factory.mktemp("browser")
    process = start_up(folder / "home", free_port(), free_port(), **SECRETS)
    try:
        served = Served(folder / "home", process, wait_for_servers(folder / "home", process))
        yield Tiny(served, deploy_tiny(served, tiny.make_corpus(folder / "corpus")))
    finally:
        stop(process)


def deploy_tiny(served: Served, corpus: Path) -> UUID:
    """A recipe of seconds, deployed as the presets are."""
    steps = ("pretrain.batches.steps=20", "sft.batches.steps=10", "dpo.batches.steps=8")
    sources = (f"corpus={corpus}", f"sft_data={corpus}", f"preference_data={corpus}")
    recipe = load_plan("demo", ["name=tiny", *tiny.SETTINGS, *steps, *sources]).recipe
    demo = next(found for found in deployments(served) if found.name == "demo")
    parameters = {
        "recipe": difference(recipe.model_dump(mode="json"), Recipe().model_dump(mode="json")),
        "execution": {**demo.parameters["execution"], "workers": 1, "threads": 1},
    }
    made: UUID = ask(
        served,
        lambda client: client.create_deployment(
            flow_id=demo.flow_id,
            name="tiny",
            parameters=parameters,
            work_pool_name=WORK_POOL,
            entrypoint=demo.entrypoint,
            pull_steps=demo.pull_steps,
            parameter_openapi_schema=demo.parameter_openapi_schema,
            job_variables=demo.job_variables,
            enforce_parameter_schema=True,
        ),
    )
    return made


@pytest.fixture(scope="module")
def page(deployment: Tiny) -> Iterator["Page"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require_program("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light", locale="en-US")
        page.set_default_timeout(30_000)
        yield page
        browser.close()


def picture(page: "Page", name: str) -> None:
    """Take a screenshot if somebody asked for them."""
    if folder := os.environ.get("BESSEMER_SCREENSHOTS"):
        page.wait_for_timeout(1_500)
        page.screenshot(path=Path(folder) / f"{name}.png")


def open_run(page: "Page", deployment: Tiny, run: UUID) -> None:
    page.goto(f"{deployment.served.addresses.prefect}/v2/runs/flow-run/{run}")


def show_final(page: "Page", deployment: Tiny, run: UUID, state: str) -> None:
    """Wait for the end of a run, and see it in its page: left open, the page draws its graph on all of a core."""
    from playwright.sync_api import expect

    page.goto("about:blank")
    wait_for_state(deployment.served, run, lambda found: found.is_final(), RUN_TIMEOUT_S)
    open_run(page, deployment, run)
    expect(page.get_by_text(state, exact=True).first).to_be_visible()


def open_form(page: "Page", deployment: Tiny) -> None:
    """From the front page to the form, by what a person clicks."""
    page.goto(deployment.served.addresses.prefect)
    page.get_by_role("link", name="Deployments").first.click()
    page.get_by_role("link", name="tiny", exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    field(page, "dpo", "beta").wait_for()


def field(page: "Page", section: str, name: str) -> "Locator":
    """A field of the form's section; the form adds "(Optional)" to every label."""
    label = f"//label[starts-with(., '{section} ')]/ancestor::div[following-sibling::fieldset][1]"
    return page.locator(f"xpath={label}/following-sibling::fieldset").get_by_label(re.compile(rf"^{name}\b"))


def runs(deployment: Tiny) -> list[Any]:
    return ask(deployment.served, lambda client: client.read_flow_runs())


@pytest.fixture(scope="module")
def completed(page: "Page", deployment: Tiny) -> Any:
    """A run started from the form with another beta than the deployment's, seen in its page when it has ended."""
    open_form(page, deployment)
    beta = field(page, "dpo", "beta")
    assert beta.input_value() == "0.1"
    beta.fill("0.2")
    beta.scroll_into_view_if_needed()
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("button", name="View run").click()
    page.wait_for_url("**/flow-run/*")
    (run,) = runs(deployment)
    show_final(page, deployment, run.id, "Completed")
    return flow_run(deployment.served, run.id)


def test_form_is_the_recipe_under_its_own_names(page: "Page", deployment: Tiny) -> None:
    open_form(page, deployment)
    labels = page.locator("label").all_inner_texts()
    names = [label.removesuffix(" (Optional)") for label in labels]
    sections = list(Recipe.model_fields)
    # `limits` has fields that bear the names of forms, and so of their sections, which come before it.
    assert list(dict.fromkeys(name for name in names if name in sections)) == sections
    layers = field(page, "pretrain", "num_layers")
    assert layers.input_value() == "2"
    layers.evaluate("input => input.scrollIntoView({block: 'center'})")
    picture(page, "form")


def test_value_out_of_bounds_is_refused_by_the_form(page: "Page", deployment: Tiny) -> None:
    before = len(runs(deployment))
    open_form(page, deployment)
    beta = field(page, "dpo", "beta")
    beta.fill("99999")
    page.get_by_role("button", name="Submit").click()
    message: str = beta.evaluate("input => input.validationMessage")
    assert "less than or equal to 10" in message
    assert page.url.split("?")[0].endswith(f"{deployment.id}/run")
    assert len(runs(deployment)) == before


def test_run_from_the_form_completes_with_its_artifacts(page: "Page", deployment: Tiny, completed: Any) -> None:
    from playwright.sync_api import expect

    assert completed.parameters["recipe"]["dpo"]["beta"] == 0.2
    open_run(page, deployment, completed.id)
    page.get_by_role("tab", name="Task Runs").click()
    expect(page.get_by_role("tabpanel").get_by_text("gate", exact=True)).to_be_visible()
    picture(page, "run")
    page.get_by_role("tab", name="Artifacts").click()
    for key in ("plan-tiny", "mlflow-tiny", "summary-tiny"):
        expect(page.get_by_text(key, exact=True)).to_be_visible()


def test_the_link_to_mlflow_opens_the_run_under_the_same_name(page: "Page", deployment: Tiny, completed: Any) -> None:
    from playwright.sync_api import expect
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    assert completed.name in {record.run_id for record in list_runs(Store(deployment.served.home))}
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[completed.id]))
    found = ask(deployment.served, lambda client: client.read_artifacts(artifact_filter=wanted))
    (link,) = [artifact.data for artifact in found if artifact.key == "mlflow-tiny"]
    page.goto(link[link.index("http") : link.rindex(")")])
    expect(page.get_by_text(completed.name).first).to_be_visible()
    expect(page.get_by_text("dpo.beta").first).to_be_visible()


def test_address_of_mlflow_opens_on_the_runs(page: "Page", deployment: Tiny, completed: Any) -> None:
    from playwright.sync_api import expect

    mlflow = deployment.served.addresses.mlflow
    page.goto(f"{mlflow}/{latest_page(mlflow)}")
    expect(page.get_by_text(completed.name).first).to_be_visible()


def test_two_runs_are_compared_in_mlflow(page: "Page", deployment: Tiny, completed: Any) -> None:
    from playwright.sync_api import expect

    run_again(deployment, completed)
    page.goto(f"{deployment.served.addresses.mlflow}/#/experiments/1/runs?workflowType=machine_learning")
    rows = page.get_by_role("checkbox", name="Press Space to toggle row selection")
    expect(rows).to_have_count(2)
    for row in rows.all():
        row.check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("switch").first.click()
    parameters = page.locator("table").filter(has_text="dpo.beta")
    expect(parameters.get_by_role("row").filter(has_text="dpo.beta")).to_contain_text(
        re.compile(r"0\.3.*0\.2|0\.2.*0\.3")
    )
    expect(parameters).not_to_contain_text("dpo.batches.steps")
    assistant = page.get_by_role("button", name="Close", exact=True)
    if assistant.is_visible():  # MLflow's assistant opens itself at the first visit, over half of the page
        assistant.click()
    picture(page, "compare")


def run_again(deployment: Tiny, first: Any) -> None:
    """The same with another beta, by the API; waits for its end."""
    made = start(deployment, first, {"dpo": {"beta": 0.3}})
    wait_for_state(deployment.served, made, lambda found: found.is_final(), RUN_TIMEOUT_S)
    assert flow_run(deployment.served, made).state.is_completed()


def start(deployment: Tiny, first: Any, changes: dict[str, dict[str, Any]]) -> UUID:
    """Start the recipe of a run again with some fields of its sections changed; the id of the run."""
    recipe = merge(first.parameters["recipe"], changes)
    return start_run(deployment.served, deployment.id, {**first.parameters, "recipe": recipe})


def choose(page: "Page", action: str, confirmation: str) -> None:
    """An entry of the run page's menu, and its dialog."""
    page.get_by_role("button").filter(has=page.locator("svg.lucide-ellipsis-vertical")).first.click()
    page.get_by_role("menuitem", name=action, exact=True).click()
    page.get_by_role("alertdialog").get_by_role("button", name=confirmation, exact=True).click()


def test_cancelled_run_leaves_a_checkpoint_that_retry_goes_on_from(
    page: "Page", deployment: Tiny, completed: Any
) -> None:
    served, home = deployment.served, deployment.served.home
    page.goto("about:blank")
    run = start(
        deployment, completed, {"pretrain": {"batches": {"steps": LONG_STEPS}, "loop": {"checkpoint_every": 10}}}
    )
    wait_until(lambda: last_checkpoint(home), RUN_TIMEOUT_S, "the first checkpoint")
    open_run(page, deployment, run)
    _, training = run_processes(served)
    assert training
    choose(page, "Cancel", "Cancel Flow Run")
    wait_for_state(served, run, lambda found: found.is_cancelling() or found.is_cancelled(), 60)
    page.goto("about:blank")
    _, alive = psutil.wait_procs(training, timeout=60)
    assert alive == []
    show_final(page, deployment, run, "Cancelled")
    reached = last_checkpoint(home)
    assert 0 < reached < LONG_STEPS

    choose(page, "Retry", "Retry")
    wait_for_state(served, run, lambda found: not found.is_final(), 60)
    show_final(page, deployment, run, "Completed")
    assert f"pretrain: going on from step {reached} of {LONG_STEPS}" in log_lines(served, run)
    record = find_run(Store(home))
    assert record.recipe["pretrain"]["batches"]["steps"] == LONG_STEPS
    undisturbed = verify_run(record, Execution(home=home, workers=1, threads=1))
    assert [stage.label for stage in undisturbed if not stage.equal] == []


def test_secrets_of_the_environment_are_written_nowhere(deployment: Tiny, completed: Any) -> None:
    """Neither to manifests, records, logs and databases, nor to what MLflow keeps."""
    files = [path for path in deployment.served.home.rglob("*") if path.is_file()]
    assert {"prefect.db", "mlflow.db", "worker.log", "environment.json", "MLmodel"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
