"""Two runs compared: every document that came or went, every setting, and verdicts that stand on shared documents."""

import json
import math
import shutil
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.champion import Champion, find_champion, find_pair
from flows.cli.main import main
from flows.recipe import load_plan
from flows.run import execute
from flows.show.compare import Answers, RunComparison, compare_runs
from flows.show.compare_page import render_page
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord, StageRecord, run_folder, save_run
from tasks.mechanism.stage import Artifact
from tasks.mechanism.store import Store
from tasks.text.documents import aligned_shards, read_kept, write_table
from tasks.text.inspect.changes import JudgedCorpus, Movement, document_changes
from tasks.track import Untracked
from tests.helpers import tiny
from tests.helpers.data import keep_all, make_documents

SMALLER = (
    "pretrain.batches.steps=10",
    "sft.batches.steps=5",
    "dpo.batches.steps=5",
    "evaluate.answer_tokens=8",
    "evaluate.answers=2",
)
LENIENT = ("gate.min_reward_accuracy=0", "limits.dpo=9")  # so that there is a champion
LATER_MODULES = ("shutil", "subprocess", "tarfile", "threading", "zipfile")


@dataclass(frozen=True)
class TwoRuns:
    """The second run has more text, a stricter filter and more steps."""

    store: Store
    before: RunRecord
    after: RunRecord
    comparison: RunComparison

    def path(self, record: RunRecord, label: str) -> Path:
        stage = record.stage(label)
        assert stage
        return self.store.open(stage.digest).path

    def kept(self, record: RunRecord) -> set[str]:
        """What the run learned from, read by the function that the trainers' stages use."""
        parts = [Artifact("", self.path(record, label)) for label in ("ingest", "filter", "dedup", "decontaminate")]
        tables = [read_kept(shard, attributes) for shard, *attributes in aligned_shards(*parts)]
        return {doc_id for table in tables for doc_id in table["doc_id"].to_pylist()}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> TwoRuns:
    folder = tmp_path_factory.mktemp("compare")
    corpus = tiny.make_corpus(folder / "library")
    sources = {"corpus": str(corpus), "sft_data": str(corpus / "json"), "preference_data": str(corpus / "json")}
    execution = Execution(home=folder / "home", workers=1, threads=1)
    settings = (*tiny.SETTINGS, *SMALLER, *LENIENT)
    before = execute(load_plan("demo", settings, sources).recipe, execution, Untracked())
    for module in LATER_MODULES:
        shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / f"{module}.py", corpus)
    changed = (*settings, "filter.min_words=20", "pretrain.batches.steps=14")
    after = execute(load_plan("demo", changed, sources).recipe, execution, Untracked())
    store = Store(execution.home)
    return TwoRuns(store, before, after, compare_runs(store, before, after))


@pytest.mark.slow
def test_documents_that_came_and_went_are_those_of_the_runs(two_runs: TwoRuns) -> None:
    found = two_runs.comparison.documents
    assert found
    old, new = two_runs.kept(two_runs.before), two_runs.kept(two_runs.after)
    assert (found.kept_before, found.kept_after, found.kept_in_both) == (len(old), len(new), len(old & new))
    assert sum(m.documents for m in found.entered) == len(new - old) > 0
    assert sum(m.documents for m in found.left) == len(old - new) > 0
    assert {(m.before, m.after) for m in found.entered} == {("not in the corpus", "kept")}
    assert ("kept", "filter: min_words") in {(m.before, m.after) for m in found.left}
    for movements, ids in ((found.entered, new - old), (found.left, old - new)):
        shown = [sample for movement in movements for sample in movement.samples]
        assert shown and {sample.doc_id for sample in shown} <= ids
    origins = {sample.origin.split(".py")[0] for movement in found.entered for sample in movement.samples}
    assert origins <= set(LATER_MODULES)


@pytest.mark.slow
def test_settings_code_and_cost_are_told(two_runs: TwoRuns) -> None:
    settings = {c.field: (c.before, c.after) for c in two_runs.comparison.settings}
    assert settings.pop("content of corpus")
    assert settings == {"filter.min_words": (10, 20), "pretrain.batches.steps": (10, 14)}
    assert two_runs.comparison.code == []
    costs = {cost.label: cost for cost in two_runs.comparison.costs}
    assert (costs["conversations"].status_before, costs["conversations"].status_after) == ("built", "cached")
    assert costs["conversations"].seconds_before > 0 == costs["conversations"].seconds_after
    assert costs["pretrain"].status_after == "built"
    figures = {(c.label, c.name): (c.before, c.after) for c in two_runs.comparison.figures}
    assert figures["ingest", "files"] == (159, 159 + len(LATER_MODULES))


@pytest.mark.slow
def test_scores_are_over_what_both_runs_scored(two_runs: TwoRuns) -> None:
    changes = {(row.model, row.change.metric): row.change for row in two_runs.comparison.models}
    assert {model for model, _ in changes} == {"base", "sft", "dpo", "int8", "fp4"}
    old, new = (
        {
            row["doc_id"]: row
            for row in pq.read_table(two_runs.path(record, "evaluate_dpo") / "documents.parquet").to_pylist()
        }
        for record in (two_runs.before, two_runs.after)
    )
    shared = [name for name in old.keys() & new.keys() if old[name]["bytes"] == new[name]["bytes"]]
    nats = sum(new[name]["nll_nats"] - old[name]["nll_nats"] for name in shared)
    found = changes["dpo", "bits_per_byte"]
    assert found.shared == len(shared) >= 5
    assert found.difference == pytest.approx(nats / math.log(2) / sum(old[name]["bytes"] for name in shared))
    assert found.low <= found.difference <= found.high
    expected = "better" if found.high < 0 else "worse" if found.low > 0 else "inconclusive"
    assert found.verdict == expected
    accuracy = changes["dpo", "preference_accuracy"]
    sides = [
        json.loads((two_runs.path(record, "evaluate_dpo") / "scores.json").read_text())["preference_accuracy"]
        for record in (two_runs.before, two_runs.after)
    ]
    assert accuracy.difference == pytest.approx(sides[1] - sides[0])  # the pairs are the same in both runs


@pytest.mark.slow
def test_comparison_the_other_way_round_is_its_mirror_image(two_runs: TwoRuns) -> None:
    forth = two_runs.comparison
    back = compare_runs(two_runs.store, two_runs.after, two_runs.before)
    assert forth.documents and back.documents
    assert [m.documents for m in back.documents.entered] == [m.documents for m in forth.documents.left]
    assert ("filter: min_words", "kept") in {(m.before, m.after) for m in back.documents.entered}
    opposite = {"better": "worse", "worse": "better", "inconclusive": "inconclusive"}
    for there, here in zip(forth.models, back.models, strict=True):
        assert here.change.difference == pytest.approx(-there.change.difference)
        assert here.change.verdict == opposite[there.change.verdict]


@pytest.mark.slow
def test_page_stands_alone_and_repeats_nothing_as_markup(two_runs: TwoRuns) -> None:
    hostile = "<script>alert(1)</script>"
    page = render_page(replace(two_runs.comparison, answers=[Answers(hostile, "a & b", "")]))
    assert two_runs.before.run_id in page and two_runs.after.run_id in page
    assert "filter.min_words" in page and "&lt;script&gt;" in page and "a &amp; b" in page
    assert not [word for word in ("<script", "<link", "src=", "href=", "@import", "url(") if word in page]


@pytest.mark.slow
def test_verb_prints_json_tables_and_a_page(
    two_runs: TwoRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [two_runs.before.run_id, two_runs.after.run_id]
    verb = ["compare", *names, "--home", str(two_runs.store.home)]
    for more in (["--json"], [], ["--html", str(tmp_path / "page.html")]):
        with pytest.raises(SystemExit) as ended:
            main([*verb, *more])
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        if more == ["--json"]:
            told = json.loads(printed)
            assert [told["before"], told["after"]] == names
            assert {"documents", "settings", "code", "figures", "models", "costs", "answers"} < told.keys()
            assert len(told["answers"]) == 2
        elif not more:
            assert "filter.min_words" in printed and "Documents that left" in printed
    assert "Documents that left" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_champion_is_a_name_for_a_run(two_runs: TwoRuns) -> None:
    champion = find_champion(two_runs.store, "demo")
    assert isinstance(champion, Champion)
    others = [r.run_id for r in (two_runs.before, two_runs.after) if r.run_id != champion.run_id]
    pair = find_pair(two_runs.store, "champion", others[0])
    assert [record.run_id for record in pair] == [champion.run_id, others[0]]
    assert find_pair(two_runs.store, others[0], "champion") == (pair[1], pair[0])
    with pytest.raises(ValueError, match="Both names mean"):
        find_pair(two_runs.store, champion.run_id, champion.run_id)
    with pytest.raises(ValueError, match="cannot be compared with itself"):
        find_pair(two_runs.store, "champion", "champion")


def test_champion_is_compared_with_the_one_that_it_replaced(tmp_path: Path) -> None:
    """What a person asks after a run that was promoted."""
    store = Store(tmp_path / "home")
    for run_id, evaluation in (("one", "aa"), ("again", "aa"), ("two", "bb")):
        save_run(store, run_that_ended_with(run_id, evaluation))
    serve_users(
        store, Champion(run_id="one", promoted="", models={}, roles={}, evaluation="aa", predecessor_evaluation="")
    )
    with pytest.raises(ValueError, match="the first that its recipe had"):
        find_pair(store, "champion", "one")
    serve_users(
        store, Champion(run_id="two", promoted="", models={}, roles={}, evaluation="bb", predecessor_evaluation="aa")
    )
    assert [record.run_id for record in find_pair(store, "champion", "two")] == ["one", "two"]
    assert [record.run_id for record in find_pair(store, "champion", "")] == ["one", "two"]
    for collected in ("one", "again"):
        (run_folder(store) / f"{collected}.json").unlink()
    with pytest.raises(ValueError, match="has been collected"):
        find_pair(store, "champion", "two")


def run_that_ended_with(run_id: str, evaluation: str) -> RunRecord:
    times = {"one": "2026-01-01", "again": "2026-01-02", "two": "2026-01-03"}
    stage = StageRecord(
        label="evaluate_dpo", stage="evaluate", key="", digest=evaluation, status="built", seconds=1.0, note=""
    )
    return RunRecord(
        run_id=run_id,
        recipe={"name": "toy"},
        command="",
        home="",
        status="completed",
        started=times[run_id],
        roles={"candidate": "dpo"},
        stages=[stage],
    )


def champion_of(run_id: str, evaluation: str, predecessor: str) -> Champion:
    return Champion(
        run_id=run_id, promoted="", models={}, roles={}, evaluation=evaluation, predecessor_evaluation=predecessor
    )


def serve_users(store: Store, champion: Champion) -> None:
    path = store.home / "champions" / "toy.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(champion.model_dump_json())


def drop(attributes: Artifact, shard: str, row: int, reason: str) -> None:
    """Have an attribute shard drop one row."""
    path = attributes.path / "attributes" / f"{shard}.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[row] |= {"keep": False, "reason": reason}
    write_table(pq.read_table(path).from_pylist(rows, pq.read_schema(path)), path)


def test_first_stage_that_drops_is_the_fate_and_one_kept_copy_is_enough(tmp_path: Path) -> None:
    """Copies of a text share their id, and dedup keeps one of them: the text is kept."""
    texts = ["early", "late", "copied", "plain"]
    documents = make_documents(tmp_path / "documents", {"a": texts})
    shard = documents.path / "shards" / "a.parquet"
    table = pq.read_table(shard)
    write_table(table.take([0, 1, 2, 2, 3]), shard)
    sides = []
    for name in ("before", "after"):
        stages = {label: keep_all(tmp_path / name / label, documents) for label in ("filter", "dedup")}
        drop(stages["dedup"], "a", 3, "exact")
        sides.append(JudgedCorpus(documents, stages))
    drop(sides[1].stages["filter"], "a", 0, "min_words")
    drop(sides[1].stages["dedup"], "a", 0, "filtered")
    drop(sides[0].stages["dedup"], "a", 1, "near")
    found = document_changes(*sides, samples=5)
    assert (found.kept_before, found.kept_after, found.kept_in_both) == (3, 3, 2)

    def told(movements: list[Movement]) -> list[tuple[str, str, list[str]]]:
        return [(m.before, m.after, [sample.beginning for sample in m.samples]) for m in movements]

    assert told(found.entered) == [("dedup: near", "kept", ["late"])]
    assert told(found.left) == [("kept", "filter: min_words", ["early"])]
