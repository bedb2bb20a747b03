"""Where links lead, and that the room's modules form no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import tasks.track
from tasks.mechanism.execution import Execution
from tasks.track import Untracked, open_tracker
from tasks.track.pages import EXPERIMENTS, latest_page
from tests.helpers.mechanism_stages import CountConfig, count
from tests.helpers.track import ToyRun, client_of

ROOM = Path(tasks.track.__file__).parent


def imports(path: Path) -> set[str]:
    """The modules of the room that a file names, wherever in the file; the room itself is `tasks.track`."""
    modules = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    return {module for module in modules if module and module.startswith("tasks.track")}


def test_no_circle_of_imports() -> None:
    graph = {f"tasks.track.{path.stem}".removesuffix(".__init__"): imports(path) for path in ROOM.glob("*.py")}
    assert "tasks.track.tracker" in graph["tasks.track"]
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order[-1] in ("tasks.track", "tasks.track.served_chat")


def test_page_of_a_run_names_its_experiment_and_asks_for_training_runs(execution: Execution) -> None:
    tracker = open_tracker(execution)
    run = ToyRun(execution, tracker)
    run.call(count, CountConfig(limit=3), "count")
    run.end()
    info = client_of(execution).get_run(run.record.tracking_run_id).info
    assert tracker.page() == f"#/experiments/{info.experiment_id}/runs/{info.run_id}?workflowType=machine_learning"
    assert Untracked().page() == ""


def test_a_server_that_does_not_answer_is_opened_on_the_list() -> None:
    assert latest_page("http://127.0.0.1:9") == EXPERIMENTS
