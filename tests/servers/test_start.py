"""Going on from the champion: its weights and tokenizer are inputs, so the run is identified, repeatable and proven."""

import json
from dataclasses import dataclass, replace

import pytest

from flows.champion import describe_start, find_champion, promote_run
from flows.gc import find_garbage
from flows.graph import Sources, prepare
from flows.plan import make_plan
from flows.recipe import Recipe, load_plan
from flows.run import InProcess, execute, train_models
from flows.show.markdown import summary_markdown
from flows.show.summary import summarise
from flows.verify import verify_run
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.stage import curve_path
from tasks.mechanism.store import Manifest, Store
from tasks.track import Untracked
from tasks.train.pretrain import PretrainConfig
from tests.helpers.growing_text import land, landings, make_recipe

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Continued:
    """A champion from scratch, then more text and a run that goes on from it."""

    execution: Execution
    scratch: RunRecord
    recipe: Recipe
    record: RunRecord

    @property
    def store(self) -> Store:
        return Store(self.execution.home)

    def manifest(self, record: RunRecord, label: str) -> Manifest:
        stage = record.stage(label)
        assert stage
        manifest = self.store.find(stage.stage, stage.key)
        assert manifest
        return manifest

    def first_loss(self, record: RunRecord) -> float:
        manifest = self.manifest(record, "pretrain")
        first = curve_path(self.store, "pretrain", manifest.key).read_text().splitlines()[0]
        return float(json.loads(first)["loss"])


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Continued:
    folder = tmp_path_factory.mktemp("continued")
    execution = Execution(home=folder / "home", workers=1, threads=1)
    recipe = make_recipe(folder, "pretrain.batches.steps=40", "start=champion")
    _, more, most, _ = landings()
    land(folder / "text", "0", more)
    assert describe_start(Store(execution.home), recipe) == "random weights, since there is no champion yet"
    scratch = execute(recipe, execution, Untracked())
    land(folder / "text", "1", most[:300])
    return Continued(execution, scratch, recipe, execute(recipe, execution, Untracked()))


def test_weights_and_tokenizer_of_the_champion_are_inputs(continued: Continued) -> None:
    first, second = (continued.manifest(record, "pretrain") for record in (continued.scratch, continued.record))
    assert "start" not in first.inputs
    assert second.inputs["start"] == first.digest
    assert second.inputs["tokenizer"] == first.inputs["tokenizer"]
    assert continued.record.stage("tokenizer") is None
    assert continued.manifest(continued.record, "pack").inputs["tokenizer"] == first.inputs["tokenizer"]
    assert continued.first_loss(continued.record) < continued.first_loss(continued.scratch) - 1


def test_what_it_started_from_is_said(continued: Continued) -> None:
    summary = summarise(continued.store, continued.record)
    base = continued.manifest(continued.scratch, "pretrain").digest[:12]
    assert summary.started_from == f"base model {base} of {continued.scratch.run_id}"
    assert f"Pretraining went on from {summary.started_from}." in summary_markdown(summary)
    assert summarise(continued.store, continued.scratch).started_from == ""
    champion = find_champion(continued.store, continued.recipe.name)
    assert champion and champion.run_id == continued.record.run_id
    assert f"the champion, {champion.run_id}" in describe_start(continued.store, continued.recipe)


def test_a_repeated_run_is_served_though_the_champion_is_its_own(continued: Continued) -> None:
    assert {row.status for row in make_plan(continued.recipe, continued.execution)} == {"cached"}
    again = execute(continued.recipe, continued.execution, Untracked())
    assert {stage.status for stage in again.stages} == {"cached"}


def with_steps(recipe: Recipe, steps: int) -> PretrainConfig:
    """The recipe's pretraining, for so many steps."""
    return recipe.pretrain.model_copy(update={"batches": replace(recipe.pretrain.batches, steps=steps)})


def test_other_settings_go_on_from_the_new_champion(continued: Continued) -> None:
    pretrain = with_steps(continued.recipe, 41)
    rows = {
        row.label: row
        for row in make_plan(continued.recipe.model_copy(update={"pretrain": pretrain}), continued.execution)
    }
    assert (rows["pack"].status, rows["pretrain"].status) == ("cached", "run")
    assert "tokenizer" not in rows


def test_it_can_be_built_again_elsewhere(continued: Continued) -> None:
    comparisons = verify_run(continued.record, continued.execution)
    assert {comparison.label for comparison in comparisons} >= {"pretrain", "dpo", "fp4"}
    assert all(comparison.equal for comparison in comparisons)


def test_another_vocabulary_is_refused_with_both_sizes(continued: Continued) -> None:
    tokenizer = continued.recipe.tokenizer.model_copy(update={"vocab_size": 600})
    recipe = continued.recipe.model_copy(update={"tokenizer": tokenizer})
    with pytest.raises(ValueError, match=r"vocab_size is 600, but the champion, growing-.*vocabulary of 512"):
        execute(recipe, continued.execution, Untracked())


def test_a_challenger_waits_for_a_person(continued: Continued) -> None:
    """It changes the champion, so it comes after what asks about the second."""

    def train_without_promotion(recipe: Recipe, sources: Sources, runner: InProcess) -> None:
        train_models(recipe, prepare(recipe, sources, runner), runner, "never")

    before = find_champion(continued.store, continued.recipe.name)
    longer = with_steps(continued.recipe, 80)
    recipe = continued.recipe.model_copy(update={"pretrain": longer})
    record = execute(recipe, continued.execution, Untracked(), body=train_without_promotion)
    assert summarise(continued.store, record).verdict["promote"]
    assert find_champion(continued.store, recipe.name) == before
    champion = promote_run(record, continued.execution)
    assert find_champion(continued.store, recipe.name) == champion
    assert before and champion.run_id == record.run_id and champion.predecessor_evaluation == before.evaluation
    with pytest.raises(ValueError, match="champion of growing already"):
        promote_run(record, continued.execution)


def test_collecting_keeps_the_model_it_went_on_from_but_not_what_that_was_made_of(continued: Continued) -> None:
    """The champion is now the third, which went on from the second, which went on from the first."""
    dead = set(find_garbage(continued.store, keep_runs=0).objects)
    first, second = (continued.manifest(record, "pretrain") for record in (continued.scratch, continued.record))
    assert not {first.digest, second.digest, second.inputs["tokens"], second.inputs["tokenizer"]} & dead
    assert first.inputs["tokens"] in dead


def test_start_is_a_field_like_others() -> None:
    assert load_plan("demo", ["start=champion"]).recipe.start == "champion"
    with pytest.raises(ValueError, match="start = 'somewhere'"):
        load_plan("demo", ["start=somewhere"])
