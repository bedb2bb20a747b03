"""Runs by name: a stage call's artifact, or an error that says what to do."""

from pathlib import Path

import pytest

from tasks.mechanism.runs import RunRecord, StageRecord, artifact_of, save_run
from tasks.mechanism.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one run, whose only stage's artifact is gone."""
    store = Store(tmp_path)
    gone = StageRecord(label="sft", stage="sft", key="k", digest="0" * 64, status="built", seconds=1.0, note="")
    recipe = {"name": "tiny"}
    record = RunRecord(
        run_id="tiny-1", recipe=recipe, command="", home=str(tmp_path), status="failed", started="2026", stages=[gone]
    )
    save_run(store, record)
    return store


@pytest.mark.parametrize("run", ["", "tiny", "tiny-1"])
def test_a_stage_that_the_run_did_not_reach_is_named(store: Store, run: str) -> None:
    with pytest.raises(ValueError, match=r"tiny-1 \(failed\) did not come as far as dpo"):
        artifact_of(store, run, "dpo")


def test_an_artifact_that_is_gone_says_how_to_rebuild_it(store: Store) -> None:
    with pytest.raises(ValueError, match=r"sft of tiny-1: .*Run the recipe again"):
        artifact_of(store, "", "sft")
