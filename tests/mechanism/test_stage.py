"""A stage call is built once per identity, served ever after, and rebuilt exactly when it must be."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from tasks.mechanism import stage as stage_module
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Outcome, StageConfig, build, curve_path, lookup, obtain
from tasks.mechanism.store import Store
from tests.helpers.mechanism_stages import CountConfig, DoubleConfig, count, dear, double, refuse


def status(*arguments: Any, **keywords: Any) -> str:
    return obtain(*arguments, **keywords).status


def test_second_call_is_served(execution: Execution) -> None:
    assert status(count, CountConfig(), {}, execution) == "built"
    outcome = obtain(count, CountConfig(), {}, execution)
    assert outcome.status == "cached"
    assert outcome.manifest.metrics == {"numbers": 3.0}


@pytest.mark.parametrize(("field", "value"), [("limit", 4), ("word", "m")])
def test_every_field_moves_the_key(field: str, value: object) -> None:
    assert set(CountConfig.model_fields) == {"limit", "word"}
    changed = CountConfig.model_validate({field: value})
    assert count.key(changed, {}) != count.key(CountConfig(), {})


def test_execution_is_no_part_of_identity(execution: Execution) -> None:
    built = build(count, CountConfig(), {}, execution)
    assert status(count, CountConfig(), {}, execution.model_copy(update={"workers": 2, "device": "cpu"})) == "cached"
    other = build(count, CountConfig(), {}, Execution(home=execution.home.with_name("other"), workers=2))
    assert other.digest == built.digest


def test_early_cut_off(execution: Execution) -> None:
    """A rerun that yields the same bytes stops there: `limit=0` writes the same file whatever the word is."""
    first = build(count, CountConfig(limit=0, word="a"), {}, execution)
    second = build(count, CountConfig(limit=0, word="b"), {}, execution)
    assert status(double, DoubleConfig(), {"numbers": first}, execution) == "built"
    assert status(double, DoubleConfig(), {"numbers": second}, execution) == "cached"


def test_damage_is_noticed_said_and_rebuilt(execution: Execution) -> None:
    artifact = build(count, CountConfig(), {}, execution)
    (artifact.path / "numbers.txt").write_text("n0\nn1\nn3\n")
    outcome = obtain(count, CountConfig(), {}, execution)
    assert outcome.status == "built"
    assert "changed on disk" in outcome.note
    assert (outcome.artifact.path / "numbers.txt").read_text() == "n0\nn1\nn2\n"
    Store(execution.home).discard(outcome.artifact.digest)
    assert "is gone" in obtain(count, CountConfig(), {}, execution).note


def test_damaged_shard_result_is_not_served_again(execution: Execution) -> None:
    """The memo shares its bytes with the artifact by a hard link, so damage hits both."""
    numbers = build(count, CountConfig(), {}, execution)
    doubled = build(double, DoubleConfig(), {"numbers": numbers}, execution)
    (doubled.path / "numbers.txt").write_text("wrong")
    again = obtain(double, DoubleConfig(), {"numbers": numbers}, execution)
    assert again.status == "built"
    assert (again.artifact.path / "numbers.txt").read_text() == "n0\nn1\nn2\n" * 2


def test_stage_held_dear_survives_a_code_change(execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = build(count, CountConfig(), {}, execution)
    old = obtain(dear, DoubleConfig(), {"numbers": numbers}, execution).manifest.code_digest
    changed = stage_module.Stage(**{**vars(dear), "code_digest": "f" * 64})
    outcome = obtain(changed, DoubleConfig(), {"numbers": numbers}, execution)
    assert outcome.status == "cached"
    assert outcome.note == f"code changed since {old[:8]}; bump version to rebuild"
    bumped = stage_module.Stage(**{**vars(dear), "version": 2})
    assert status(bumped, DoubleConfig(), {"numbers": numbers}, execution) == "built"


def test_cheap_stage_is_rebuilt_on_a_code_change(execution: Execution) -> None:
    build(count, CountConfig(), {}, execution)
    changed = stage_module.Stage(**{**vars(count), "code_digest": "f" * 64})
    assert status(changed, CountConfig(), {}, execution) == "built"


def test_failure_leaves_no_artifact_but_keeps_scratch(execution: Execution) -> None:
    with pytest.raises(ValueError, match="the input is wrong"):
        build(refuse, DoubleConfig(), {}, execution)
    store = Store(execution.home)
    assert lookup(store, refuse, DoubleConfig(), {}) == ""
    assert not list(store.home.glob("objects/*"))
    key = refuse.key(DoubleConfig(), {})
    assert (store.scratch("refuse", key) / "checkpoint.txt").read_text() == "kept"


def test_full_disk_is_a_clear_error(execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    Store(execution.home)
    monkeypatch.setattr("tasks.mechanism.store.write_atomically", no_space)
    with pytest.raises(ValueError, match="No space left.*bessemer gc.*again"):
        build(count, CountConfig(), {}, execution)


def test_curves_lie_beside_the_manifest(execution: Execution) -> None:
    outcome = obtain(count, CountConfig(), {}, execution)
    path = curve_path(Store(execution.home), "count", outcome.manifest.key)
    points = [json.loads(line) for line in path.read_text().splitlines()]
    assert points == [{"step": step, "value": float(step)} for step in range(3)]


def _build_and_report(home: Path, queue: Any) -> None:
    queue.put(obtain(count, CountConfig(limit=50), {}, Execution(home=home)).status)


def test_two_simultaneous_builders_build_once(execution: Execution) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    builders = [context.Process(target=_build_and_report, args=(execution.home, queue)) for _ in range(2)]
    for builder in builders:
        builder.start()
    statuses = sorted(queue.get(timeout=60) for _ in builders)
    for builder in builders:
        builder.join()
    assert statuses == ["built", "cached"]


def test_configs_refuse_unknown_fields() -> None:
    with pytest.raises(ValueError, match="limitt"):
        CountConfig.model_validate({"limitt": 3})
    assert CountConfig.model_config["frozen"] and issubclass(CountConfig, StageConfig)


def test_lookup_returns_outcome_when_intact(execution: Execution) -> None:
    build(count, CountConfig(), {}, execution)
    assert isinstance(lookup(Store(execution.home), count, CountConfig(), {}), Outcome)
