"""Garbage is what no kept run and no champion needs; what goes, goes manifest first, and what stays is a hit."""

import json
import os
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from flows.champion import Champion
from flows.cli.main import main
from flows.gc import collect, find_garbage
from flows.recipe import Recipe
from flows.run import InProcess
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord, StageRecord, Status, hold_run, list_runs, save_run
from tasks.mechanism.stage import Outcome, obtain
from tasks.mechanism.store import Store, now_utc
from tasks.text.dedup.dedup import DedupConfig, dedup, index_folder, index_parameters
from tasks.text.dedup.index import DedupIndex
from tasks.track import Untracked
from tests.helpers.data import keep_all, make_documents, words
from tests.helpers.mechanism_stages import CountConfig, DoubleConfig, count, double


def run_once(execution: Execution, number: int, limit: int) -> list[Outcome]:
    """One pipeline run of count -> double, recorded."""
    first = obtain(count, CountConfig(limit=limit), {}, execution)
    second = obtain(double, DoubleConfig(), {"numbers": first.artifact}, execution)
    save_outcomes(execution, number, [first, second])
    return [first, second]


def save_outcomes(
    execution: Execution, number: int, outcomes: list[Outcome], status: Status = "completed"
) -> RunRecord:
    """Record a run of these stage calls."""
    stages = [
        StageRecord(
            label=o.label,
            stage=o.manifest.stage,
            key=o.manifest.key,
            digest=o.manifest.digest,
            status=o.status,
            seconds=o.manifest.seconds,
            note=o.note,
        )
        for o in outcomes
    ]
    record = RunRecord(
        run_id=f"run-{number}",
        recipe={"name": "test"},
        command="",
        home=str(execution.home),
        status=status,
        started=f"2026-01-0{number}T00:00:00+00:00",
        stages=stages,
    )
    save_run(Store(execution.home), record)
    return record


def test_only_the_kept_run_and_its_inputs_stay(execution: Execution) -> None:
    old = run_once(execution, 1, limit=3)
    new = run_once(execution, 2, limit=5)
    store = Store(execution.home)
    garbage = find_garbage(store, keep_runs=1)
    assert set(garbage.objects) == {o.artifact.digest for o in old}
    assert garbage.runs == ["run-1"]
    assert garbage.bytes > 0
    collect(store, garbage)
    assert {path.name for path in store.objects.iterdir()} == {o.artifact.digest for o in new}
    assert [record.run_id for record in list_runs(store)] == ["run-2"]
    assert run_again(execution, 5) == ["cached", "cached"]
    assert run_again(execution, 3) == ["built", "built"]


def run_again(execution: Execution, limit: int) -> list[str]:
    first = obtain(count, CountConfig(limit=limit), {}, execution)
    return [first.status, obtain(double, DoubleConfig(), {"numbers": first.artifact}, execution).status]


def built_before_any_run(store: Store) -> None:
    """As if all that is there were years old."""
    for path in store.keys.rglob("*.json"):
        os.utime(path, (1, 1))


def test_a_living_run_is_kept_however_many_began_after_it(execution: Execution) -> None:
    store = Store(execution.home)
    first = obtain(count, CountConfig(limit=2), {}, execution)
    running = save_outcomes(execution, 1, [first], "running")
    dead = obtain(count, CountConfig(limit=3), {}, execution)
    save_outcomes(execution, 2, [dead], "running")
    kept = run_once(execution, 3, limit=5)
    built_before_any_run(store)
    with hold_run(store, running):
        garbage = find_garbage(store, keep_runs=1)
        assert (garbage.objects, garbage.runs) == ([dead.artifact.digest], ["run-2"])
        collect(store, garbage)
        assert {path.name for path in store.objects.iterdir()} == {o.artifact.digest for o in [first, *kept]}
        assert [record.run_id for record in list_runs(store)] == ["run-1", "run-3"]
    garbage = find_garbage(store, keep_runs=1)
    assert (garbage.objects, garbage.runs) == ([first.artifact.digest], ["run-1"])
    collect(store, garbage)
    assert not (store.home / "locks" / "run-run-1").exists()


def hold_and_wait(record: RunRecord, home: Path, holds: Any) -> None:
    with hold_run(Store(home), record):
        holds.set()
        time.sleep(600)


def test_a_run_whose_process_was_killed_keeps_nothing(execution: Execution) -> None:
    store = Store(execution.home)
    record = save_outcomes(execution, 1, [obtain(count, CountConfig(limit=2), {}, execution)], "running")
    built_before_any_run(store)
    context = get_context("spawn")
    holds = context.Event()
    process = context.Process(target=hold_and_wait, args=(record, execution.home, holds))
    process.start()
    assert holds.wait(60)
    assert find_garbage(store, keep_runs=0).objects == []
    process.kill()
    process.join()
    assert len(find_garbage(store, keep_runs=0).objects) == 1


def test_what_a_living_run_is_about_to_write_down_stays(execution: Execution) -> None:
    """An artifact is in the store before it is in the run's record."""
    store = Store(execution.home)
    record = save_outcomes(execution, 1, [], "running")
    record.started = now_utc()
    save_run(store, record)
    outcome = obtain(count, CountConfig(limit=2), {}, execution)
    with hold_run(store, record):
        assert find_garbage(store, keep_runs=0).objects == []
    assert find_garbage(store, keep_runs=0).objects == [outcome.artifact.digest]


def test_an_object_whose_manifest_is_on_its_way_stays(execution: Execution, tmp_path: Path) -> None:
    store = Store(execution.home)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    artifact = store.publish(tmp_path / "out")
    with store.lock("count", "a" * 64):
        assert find_garbage(store, keep_runs=0).objects == []
    assert find_garbage(store, keep_runs=0).objects == [artifact.digest]


def test_a_run_in_this_process_is_alive_until_it_ends(execution: Execution) -> None:
    run = InProcess(Recipe(), execution, Untracked(), {})
    store = Store(execution.home)
    run(count, CountConfig(limit=2))
    built_before_any_run(store)
    garbage = find_garbage(store, keep_runs=0)
    assert (garbage.runs, garbage.objects) == ([], [])
    run.finish("completed")
    garbage = find_garbage(store, keep_runs=0)
    assert (garbage.runs, len(garbage.objects)) == ([run.record.run_id], 1)


def test_a_champion_outlives_its_run(execution: Execution) -> None:
    old = run_once(execution, 1, limit=3)
    run_once(execution, 2, limit=5)
    store = Store(execution.home)
    champion = Champion(
        run_id="run-1",
        promoted="2026-01-01T00:00:00+00:00",
        models={"dpo": old[1].artifact.digest},
        roles={"candidate": "dpo"},
        evaluation=old[1].artifact.digest,
        predecessor_evaluation="",
    )
    (store.home / "champions").mkdir()
    (store.home / "champions" / "test.json").write_text(champion.model_dump_json())
    assert find_garbage(store, keep_runs=1).objects == []


def test_what_is_being_built_is_left_alone(execution: Execution) -> None:
    store = Store(execution.home)
    scratch = store.scratch("count", "a" * 64)
    (scratch / "checkpoint").write_text("x")
    with store.lock("count", "a" * 64):
        assert find_garbage(store, keep_runs=0).scratch == []
    assert find_garbage(store, keep_runs=0).scratch == [scratch]


def test_shard_results_go_with_the_last_artifact_that_holds_them(execution: Execution) -> None:
    run_once(execution, 1, limit=3)
    store = Store(execution.home)
    assert find_garbage(store, keep_runs=1).memos == []
    garbage = find_garbage(store, keep_runs=0)
    assert len(garbage.memos) == 1
    collect(store, garbage)
    assert not list((store.home / "memo").glob("*/*"))
    assert not list(store.keys.glob("*/*"))


def test_an_old_chain_of_the_index_goes_and_the_kept_one_stays(execution: Execution, tmp_path: Path) -> None:
    def run(number: int, shards: dict[str, list[str]]) -> Outcome:
        documents = make_documents(tmp_path / f"documents{number}", shards)
        kept = keep_all(tmp_path / f"kept{number}", documents)
        outcome = obtain(dedup, DedupConfig(), {"documents": documents, "filtered": kept}, execution)
        save_outcomes(execution, number, [outcome])
        return outcome

    a, b, c = ([words(10 * shard + n, 40) for n in range(5)] for shard in range(3))
    store = Store(execution.home)
    old = run(1, {"a": a, "b": b})
    run(2, {"a": a, "c": c})
    assert find_garbage(store, keep_runs=2).index == []
    before = set(index_folder(store).glob("*"))
    garbage = find_garbage(store, keep_runs=1)
    assert garbage.objects == [old.artifact.digest]
    assert {path.suffix for path in garbage.index} == {".json", ".arrow", ".parquet", ".sha256", ""}
    assert len(garbage.memos) == 1, "the signatures of b; a is signed in the chain that stays"
    collect(store, garbage)
    again = find_garbage(store, keep_runs=1)
    assert (again.index, again.memos, again.bytes) == ([], [], 0)
    left = set(index_folder(store).glob("*"))
    run(3, {"a": a, "c": c, "d": a})
    assert left < before and left <= set(index_folder(store).glob("*"))
    collect(store, find_garbage(store, keep_runs=0))
    assert [path for path in index_folder(store).rglob("*") if path.is_file()] == []


def test_a_file_with_several_names_counts_once_and_when_its_last_name_goes(
    execution: Execution, tmp_path: Path
) -> None:
    """Signatures are a shard's result and an entry of the index; verdicts lie in the artifact too."""
    store = Store(execution.home)
    documents = make_documents(tmp_path / "documents", {"a": [words(n, 40) for n in range(5)]})
    kept = keep_all(tmp_path / "kept", documents)
    outcome = obtain(dedup, DedupConfig(), {"documents": documents, "filtered": kept}, execution)
    (verdicts,) = outcome.artifact.path.glob("attributes/*.parquet")
    os.link(verdicts, tmp_path / "held elsewhere")
    garbage = find_garbage(store, keep_runs=0)
    dying = [*(store.objects / name for name in garbage.objects), *garbage.memos, *garbage.index]
    files = {path.stat().st_ino: path.stat() for root in dying for path in [root, *root.rglob("*")] if path.is_file()}
    assert any(status.st_nlink > 1 for status in files.values())
    expected = sum(status.st_size for status in files.values()) - verdicts.stat().st_size
    assert garbage.bytes == expected
    collect(store, garbage)
    assert not any(root.exists() for root in dying)


def test_a_shard_result_that_unfinished_work_holds_goes_with_it(execution: Execution) -> None:
    store = Store(execution.home)
    memo = store.home / "memo" / "count_words" / ("b" * 64)
    memo.mkdir(parents=True)
    (memo / "data").write_bytes(b"result")
    os.link(memo / "data", store.scratch("count", "a" * 64) / "output")
    garbage = find_garbage(store, keep_runs=0)
    assert (garbage.memos, garbage.bytes) == ([memo], 6)


def test_shard_results_stay_while_a_stage_is_built(execution: Execution) -> None:
    store = Store(execution.home)
    memo = store.home / "memo" / "count_words" / ("b" * 64)
    memo.mkdir(parents=True)
    (memo / "data").write_bytes(b"not yet delivered")
    store.scratch("count", "a" * 64)
    with store.lock("count", "a" * 64):
        assert find_garbage(store, keep_runs=0).memos == []
    assert find_garbage(store, keep_runs=0).memos == [memo]


def test_a_collection_says_what_it_removes_of_the_index(
    execution: Execution, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = make_documents(tmp_path / "documents", {"a": ["one text", "another text"]})
    kept = keep_all(tmp_path / "kept", documents)
    obtain(dedup, DedupConfig(), {"documents": documents, "filtered": kept}, execution)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["gc", "--home", str(execution.home), "--keep", "0", "--json"])
    figures = json.loads(capsys.readouterr().out)
    # The claim, and of its one shard the verdicts, their digest, the signatures and the segment.
    assert (figures["objects"], figures["memos"], figures["index"], figures["removed"]) == (1, 1, 5, True)


def test_a_chain_that_is_being_built_on_stays(execution: Execution) -> None:
    store = Store(execution.home)
    index = DedupIndex(index_folder(store), index_parameters(DedupConfig()), ["c" * 64])
    index.claim("a" * 64)
    index.verdict_path(0).write_bytes(b"verdicts")
    store.scratch("dedup", "a" * 64)
    with store.lock("dedup", "a" * 64):
        assert find_garbage(store, keep_runs=0).index == []
    assert set(find_garbage(store, keep_runs=0).index) >= {index.verdict_path(0)}


@pytest.mark.parametrize("keep", [0, 1, 5])
def test_collecting_twice_finds_nothing_more(execution: Execution, keep: int) -> None:
    run_once(execution, 1, limit=3)
    run_once(execution, 2, limit=5)
    store = Store(execution.home)
    collect(store, find_garbage(store, keep))
    again = find_garbage(store, keep)
    assert (again.objects, again.manifests, again.memos, again.runs) == ([], [], [], [])
    assert json.dumps(again.bytes) == "0"
