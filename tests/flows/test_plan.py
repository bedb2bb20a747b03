"""The plan says what the run will do, why in words, and builds nothing."""

from pathlib import Path

import pytest

from flows.plan import Planner, PlanRow
from tasks.mechanism import stage as stage_module
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tasks.mechanism.store import Store
from tests.helpers.mechanism_stages import CountConfig, DoubleConfig, count, dear, double


def plan(execution: Execution, limit: int = 3, word: str = "n", times: int = 2) -> dict[str, PlanRow]:
    """The plan of count -> double."""
    planner = Planner(execution)
    numbers = planner(count, CountConfig(limit=limit, word=word))
    planner(double, DoubleConfig(times=times), numbers=numbers)
    return {row.label: row for row in planner.rows}


@pytest.fixture
def built(execution: Execution) -> Artifact:
    """count -> double, both in the store."""
    numbers = build(count, CountConfig(), {}, execution)
    return build(double, DoubleConfig(), {"numbers": numbers}, execution)


def test_nothing_was_ever_built(execution: Execution) -> None:
    rows = plan(execution)
    assert {row.reason for row in rows.values()} == {"never built here"}
    assert {row.status for row in rows.values()} == {"run"}
    assert all(row.forecast is None for row in rows.values())


def test_all_is_served(execution: Execution, built: Artifact) -> None:
    assert {row.status for row in plan(execution).values()} == {"cached"}


def test_a_changed_field_runs_and_what_follows_may(execution: Execution, built: Artifact) -> None:
    rows = plan(execution, limit=4)
    assert (rows["count"].status, rows["count"].reason) == ("run", "count.limit: 3 → 4")
    assert (rows["double"].status, rows["double"].reason) == ("maybe", "its input may change")
    forecast = rows["count"].forecast
    assert forecast is not None and forecast.low < forecast.seconds < forecast.high


def test_a_later_change_leaves_the_earlier_stage_alone(execution: Execution, built: Artifact) -> None:
    rows = plan(execution, times=3)
    assert rows["count"].status == "cached"
    assert (rows["double"].status, rows["double"].reason) == ("run", "double.times: 2 → 3")


def test_the_closest_earlier_build_explains(execution: Execution, built: Artifact) -> None:
    build(count, CountConfig(limit=9, word="z"), {}, execution)
    assert plan(execution, limit=4)["count"].reason == "count.limit: 3 → 4"


def test_damage_is_announced(execution: Execution, built: Artifact) -> None:
    Store(execution.home).discard(built.digest)
    assert "is gone" in plan(execution)["double"].reason


def test_code_and_version_changes_are_named(execution: Execution) -> None:
    numbers = build(count, CountConfig(), {}, execution)
    build(dear, DoubleConfig(), {"numbers": numbers}, execution)
    edited = stage_module.Stage(**{**vars(count), "code_digest": "f" * 64})
    bumped = stage_module.Stage(**{**vars(dear), "version": 2})
    planner = Planner(execution)
    planner(edited, CountConfig())
    planner(bumped, DoubleConfig(), numbers=numbers)
    assert planner.rows[0].reason == f"code changed: {count.code_digest[:8]} → ffffffff"
    assert planner.rows[1].reason == "dear version: 1 → 2"


def test_planning_leaves_the_store_alone(execution: Execution, built: Artifact) -> None:
    def names() -> set[Path]:
        return set(execution.home.rglob("*"))

    before = names()
    plan(execution, limit=5)
    assert names() == before
