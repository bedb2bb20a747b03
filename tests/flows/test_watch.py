"""The watch: nothing new is quick, new text is prepared, training follows the policy."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.recipe import Recipe, load_plan
from flows.servers.start import prefect_server
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import list_runs
from tasks.mechanism.store import Store
from tests.helpers import tiny


@pytest.fixture(scope="module")
def execution(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Execution]:
    home = tmp_path_factory.mktemp("watch") / "home"
    execution = Execution(home=home, workers=1, threads=1, tracking_uri="none")
    before = dict(os.environ)
    with prefect_server(execution):
        yield execution
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    corpus = tiny.make_corpus(tmp_path_factory.mktemp("text") / "library")
    sources = {"corpus": str(corpus), "sft_data": str(corpus / "json"), "preference_data": str(corpus / "json")}
    return load_plan("demo", tiny.SETTINGS, sources).recipe


@pytest.mark.slow
def test_only_new_text_costs_anything(execution: Execution, recipe: Recipe) -> None:
    from flows.watch import ingest
    from flows.watched import WatchConfig

    store = Store(execution.home)
    watch = WatchConfig(retrain="never")
    assert ingest(recipe, watch, execution, return_state=True).message == "New text: prepared, not trained on."
    started = time.monotonic()
    assert ingest(recipe, watch, execution, return_state=True).name == "NothingNew"
    assert time.monotonic() - started < 10
    assert len(list_runs(store)) == 1

    shutil.copy(Path(os.__file__), Path(recipe.corpus) / "os.py")
    state = ingest(recipe, watch, execution, return_state=True)
    assert state.message == "New text: prepared, not trained on."
    latest = list_runs(store)[-1]
    statuses = {stage.label: stage.status for stage in latest.stages}
    assert statuses["ingest"] == "built"
    assert statuses["conversations"] == statuses["preferences"] == "cached"
    assert "pretrain" not in statuses


@pytest.mark.parametrize(
    ("retrain", "trained", "tokens", "expected"),
    [
        ("never", 0, 100, False),
        ("always", 100, 100, True),
        ("when grown", 0, 100, True),
        ("when grown", 100, 104, False),
        ("when grown", 100, 106, True),
        ("when grown", 100, 90, True),
    ],
)
def test_policy(retrain: str, trained: float, tokens: float, expected: bool) -> None:
    from flows.watched import WatchConfig, wants_training

    watch = WatchConfig.model_validate({"retrain": retrain, "new_share": 0.05})
    assert wants_training(watch, trained, tokens) is expected


def test_changes_of_files_are_by_content() -> None:
    from flows.watched import file_changes

    before = {"a": "1", "b": "2", "c": "3"}
    assert file_changes(before, {"a": "1", "b": "9", "d": "4"}) == (["b", "d"], ["c"])
