"""One protocol of reporting: whoever watches a stage, a child or several at once is told the same calls."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.mechanism.execution import Execution
from tasks.mechanism.observe import EVENTS_FILE, ChildRun, EventReader, Relay, Reporter, Silent, Together
from tasks.mechanism.progress import Progress
from tasks.mechanism.stage import StageRun
from tasks.mechanism.store import Store

Call = tuple[Any, ...]


class Listener:
    """A reporter, and its own bar, that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def metric(self, name: str, value: float) -> None:
        self.calls.append(("metric", name, value))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append(("log", step, dict(values)))

    def rewind(self, step: int) -> None:
        self.calls.append(("rewind", step))

    def say(self, text: str) -> None:
        self.calls.append(("say", text))

    def progress(self, description: str, total: float, unit: str) -> "Listener":
        self.calls.append(("progress", description, total, unit))
        return self

    def __enter__(self) -> "Listener":
        self.calls.append(("begin",))
        return self

    def __exit__(self, *error: object) -> None:
        self.calls.append(("end",))

    def advance(self, amount: float) -> None:
        self.calls.append(("advance", amount))

    def resume_at(self, done: float) -> None:
        self.calls.append(("resume_at", done))


def work(reporter: Reporter) -> None:
    """Report in every way there is."""
    reporter.rewind(0)
    with reporter.progress("count", 3, "things") as bar:
        bar.resume_at(1)
        reporter.log(1, {"loss": 0.5})
        bar.advance(2)
    reporter.say("hello")
    reporter.metric("answer", 42.0)


TOLD: list[Call] = [
    ("rewind", 0),
    ("progress", "count", 3, "things"),
    ("begin",),
    ("resume_at", 1),
    ("log", 1, {"loss": 0.5}),
    ("advance", 2),
    ("end",),
    ("say", "hello"),
    ("metric", "answer", 42.0),
]


def run_of(tmp_path: Path, reporter: Reporter) -> StageRun:
    execution = Execution(home=tmp_path / "home")
    return StageRun(tmp_path / "scratch", execution, Store(execution.home), reporter)


def test_who_watches_a_stage_is_told_all_of_it(tmp_path: Path) -> None:
    listener = Listener()
    run = run_of(tmp_path, listener)
    work(run)
    assert listener.calls == TOLD
    assert run.metrics == {"answer": 42.0}
    assert json.loads((tmp_path / "scratch" / "curve.jsonl").read_text()) == {"step": 1, "loss": 0.5}


def test_several_are_told_the_same() -> None:
    one, other = Listener(), Listener()
    work(Together(one, Silent(), other))
    assert one.calls == other.calls == TOLD


def test_a_bar_ends_with_the_error_that_ended_its_step() -> None:
    one, other = Listener(), Listener()
    with pytest.raises(KeyError), Together(one, other).progress("count", 3, "things"):
        raise KeyError
    assert one.calls[-1] == other.calls[-1] == ("end",)


def test_a_child_s_calls_are_its_parent_s(tmp_path: Path) -> None:
    listener = Listener()
    work(ChildRun(tmp_path / "out", tmp_path, Execution(home=tmp_path)))
    relay = Relay(listener)
    for event in EventReader(tmp_path / EVENTS_FILE).new():
        relay.take(event)
    relay.close()
    # A child's bar has no end of its own: the parent closes it with the next one, or with the child.
    assert [call for call in listener.calls if call != ("end",)] == [call for call in TOLD if call != ("end",)]
    assert listener.calls.count(("end",)) == 1


def test_what_an_earlier_run_had_done_counts_for_the_share_and_not_for_the_rate() -> None:
    with Progress("count", 4, "things") as bar:
        bar.resume_at(3)
        assert (bar.percent, bar.rate, bar.seconds_left) == (75.0, 0.0, float("inf"))
        assert bar.line() == "count: 75% of 4 things, 0 things/s, ? left"
        bar.advance(1)
        assert bar.percent == 100.0 and bar.rate > 0 and bar.seconds_left == 0.0
    assert Progress("nothing", 0, "things").percent == 100.0
