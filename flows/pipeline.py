"""The pipeline as a Prefect flow: the form is the recipe, each stage call a task run, our store decides what is cached.

Stages are called directly: a submitted task never sees a cancel, and trains on until it is killed without a checkpoint.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.addresses import live_addresses
from flows.champion import describe_start
from flows.observers import PrefectObserver
from flows.plan import make_plan, plan_markdown
from flows.recipe import Recipe
from flows.run import InProcess, execute
from flows.show.markdown import report_files, stage_markdown, summary_markdown
from flows.show.summary import summarise
from tasks.mechanism.execution import Execution
from tasks.mechanism.observe import Together
from tasks.mechanism.progress import format_seconds
from tasks.mechanism.runs import RunRecord, Status
from tasks.mechanism.stage import Input, Outcome, Stage, lookup, obtain
from tasks.mechanism.store import Store
from tasks.track import open_tracker

TRAINING_SLOT = "gpu"
PREFECTS_OWN_NAME = re.compile("[a-z]+-[a-z]+")  # an adjective and an animal, where nobody gave a name
SLOT_LEASE_S = 60.0  # a killed holder's slot is free again after this long


@flow(name="bessemer", log_prints=False, validate_parameters=True)
def bessemer(recipe: Recipe = Recipe(), execution: Execution = Execution()) -> RunRecord:  # noqa: B008
    """Raw text in; a base, chat and aligned model, their INT8 and FP4 forms, and a verdict out.

    Args:
        recipe: What to build, a section per stage. Equal recipes on equal content give equal models.
        execution: Where and how fast. Nothing here changes a result, but for rounding in training.
    """
    tracker = open_tracker(execution, report_files)
    start = describe_start(Store(execution.home), recipe)
    plan = f"{plan_markdown(make_plan(recipe, execution))}\n\nPretraining starts from {start}."
    create_markdown_artifact(plan, key=artifact_key("plan", recipe.name), description="What will run")
    return execute(recipe, execution, tracker, PrefectRunner)


def artifact_key(kind: str, name: str) -> str:
    """Prefect allows lower-case letters, digits and dashes: ("plan", "My_data") -> "plan-my-data"."""
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in f"{kind}-{name}".lower())


def name_flow_run(run_id: str) -> None:
    """Have Prefect's pages call this run as the terminal and MLflow do.

    A name that somebody gave it (in the form, a backfill for its date, an earlier attempt) stays as a tag, to be found
    by. `flow_run_name` of the flow could do neither: it is filled in before there is an id, and overrides the form's.
    """
    context = FlowRunContext.get()
    assert context and context.flow_run
    flow_run = context.flow_run
    given = set() if PREFECTS_OWN_NAME.fullmatch(flow_run.name) else {flow_run.name}
    get_client(sync_client=True).update_flow_run(flow_run.id, name=run_id, tags=given.union(flow_run.tags))
    flow_run.name = run_id  # Prefect's own lines in the log name the run by this copy


# Prefect's own cache never looks at the files that a record names: it serves what is gone.
@task(name="stage", cache_policy=NO_CACHE, persist_result=False)
def stage_task(carry_out: Callable[[], Outcome]) -> State[Any]:
    """One stage call. Its state says whether the store had the result."""
    outcome = carry_out()
    if outcome.status == "cached":
        return Completed(name="Cached", message=outcome.note or "Served from the store.", data=outcome)
    spent = format_seconds(outcome.manifest.seconds)
    return Completed(message=f"Built in {spent}: {outcome.artifact.digest[:12]}. {outcome.note}".strip(), data=outcome)


class PrefectRunner(InProcess):
    """The in-process runner with a task run around each stage call and artifacts for people."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._logger = get_run_logger()
        self._states: dict[str, State[Any]] = {}
        name_flow_run(self.record.run_id)
        self._logger.info("Run %s, in %s", self.record.run_id, self.store.home)
        self._link_tracking()

    def carry_out(self, stage: Stage[Any], config: Any, label: str, inputs: Mapping[str, Input]) -> Outcome:
        """Run the stage call as a task run whose predecessors are the task runs that made its inputs."""
        before = [self._states[value.digest] for value in inputs.values() if value.digest in self._states]
        named = stage_task.with_options(name=stage.name, task_run_name=label)

        def work() -> Outcome:
            return self._obtain(stage, config, label, inputs)

        state: State[Any] = named(work, wait_for=before, return_state=True)
        outcome: Outcome = state.result()
        self._states[outcome.artifact.digest] = state
        self._logger.info("%s: %s", label, state.message)
        return outcome

    def _obtain(self, stage: Stage[Any], config: Any, label: str, inputs: Mapping[str, Input]) -> Outcome:
        key = artifact_key(label, str(self.record.recipe["name"]))  # one series on Prefect's page for each recipe
        with PrefectObserver(label, key) as shown, self._slot(stage, config, inputs):
            observer = Together(self.tracker.stage_observer(label), shown)
            outcome = obtain(stage, config, inputs, self.execution, label, observer)
            if outcome.status == "built":
                shown.show_figures(stage_markdown(self.store, outcome))
            return outcome

    @contextmanager
    def _slot(self, stage: Stage[Any], config: Any, inputs: Mapping[str, Input]) -> Iterator[None]:
        """One training at a time where the slot exists; data runs, and what the store serves, pass by."""
        trains = stage.rebuild == "on-version" and not isinstance(lookup(self.store, stage, config, inputs), Outcome)
        if not trains:
            yield
            return
        with concurrency(TRAINING_SLOT, lease_duration=SLOT_LEASE_S):
            yield

    def finish(self, status: Status, error: str = "") -> None:
        """Close record and tracking, then show the summary beside the flow run."""
        super().finish(status, error)  # first, so that the record closes even where Prefect no longer answers
        summary = summary_markdown(summarise(Store(self.execution.home), self.record))
        name = str(self.record.recipe["name"])
        create_markdown_artifact(summary, key=artifact_key("summary", name), description=self.record.run_id)

    def _link_tracking(self) -> None:
        addresses = live_addresses(self.execution.home)
        server = self.execution.tracking_uri or (addresses.mlflow if addresses else "")
        page = self.tracker.page()
        if server.startswith("http") and page:
            link = f"{server.rstrip('/')}/{page}"
            key = artifact_key("mlflow", str(self.record.recipe["name"]))
            create_link_artifact(
                link, "The run in MLflow", key=key, description="Curves, figures and artifacts in MLflow"
            )
