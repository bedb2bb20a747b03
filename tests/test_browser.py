"""What people do day to day, in a real browser against a real `bessemer up`: start a run from the form, compare two.

BESSEMER_SCREENSHOTS=docs/images takes the pictures of the README anew.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from flows.deployments import WORK_POOL, difference
from flows.recipe import Recipe, load_plan
from flows.servers import free_port
from tests import tiny
from tests.conftest import require_program
from tests.up_helpers import Served, ask, deployments, start_up, stop, wait_for_servers

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


@dataclass(frozen=True)
class Tiny:
    """The deployment that the tests start, beside those of the presets."""

    served: Served
    id: UUID


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    require_program("chromium")
    folder = tmp_path_factory.mktemp("browser")
    process = start_up(folder / "home", free_port(), free_port())
    try:
        served = Served(folder / "home", process, wait_for_servers(folder / "home", process))
        yield Tiny(served, deploy_tiny(served, tiny.make_corpus(folder / "corpus")))
    finally:
        stop(process)


def deploy_tiny(served: Served, corpus: Path) -> UUID:
    """A recipe of seconds, deployed as the presets are."""
    steps = ("pretrain.steps=20", "sft.steps=10", "dpo.steps=8")
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
    """A run started from the form with another beta than the deployment's, seen to its end in the page."""
    from playwright.sync_api import expect

    open_form(page, deployment)
    beta = field(page, "dpo", "beta")
    assert beta.input_value() == "0.1"
    beta.fill("0.2")
    beta.scroll_into_view_if_needed()
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("button", name="View run").click()
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=RUN_TIMEOUT_S * 1000)
    (run,) = runs(deployment)
    return run


def test_form_is_the_recipe_under_its_own_names(page: "Page", deployment: Tiny) -> None:
    open_form(page, deployment)
    labels = page.locator("label").all_inner_texts()
    names = [label.removesuffix(" (Optional)") for label in labels]
    sections = list(Recipe.model_fields)
    assert [name for name in names if name in sections] == sections
    assert field(page, "pretrain", "num_layers").input_value() == "2"
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
    page.goto(f"{deployment.served.addresses.prefect}/v2/runs/flow-run/{completed.id}")
    page.get_by_role("tab", name="Task Runs").click()
    expect(page.get_by_role("tabpanel").get_by_text("gate", exact=True)).to_be_visible()
    picture(page, "run")
    page.get_by_role("tab", name="Artifacts").click()
    for key in ("plan-tiny", "mlflow-tiny", "summary-tiny"):
        expect(page.get_by_text(key, exact=True)).to_be_visible()


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
    expect(parameters.get_by_role("row").filter(has_text="dpo.beta")).to_contain_text(re.compile("0.3.*0.2"))
    expect(parameters).not_to_contain_text("dpo.steps")
    picture(page, "compare")


def run_again(deployment: Tiny, first: Any) -> None:
    """The same with another beta, by the API; waits for its end."""
    recipe = {**first.parameters["recipe"], "dpo": {**first.parameters["recipe"]["dpo"], "beta": 0.3}}
    made = ask(
        deployment.served,
        lambda client: client.create_flow_run_from_deployment(
            deployment.id, parameters={"recipe": recipe, "execution": first.parameters["execution"]}
        ),
    )
    deadline = time.monotonic() + RUN_TIMEOUT_S
    state = made.state
    while not state.is_final() and time.monotonic() < deadline:
        time.sleep(0.5)
        state = next(run.state for run in runs(deployment) if run.id == made.id)
    assert state.is_completed(), state
