"""The pipeline from text to verdict: repeatable, resumable, and served from the store when nothing changed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.track.connection import local_tracking_uri
from tests.helpers import tiny

pytestmark = pytest.mark.slow
IN_PROCESS = ("--in-process", "--no-tracking")
DATA_STAGES = ("ingest", "filter", "dedup", "conversations", "preferences", "decontaminate", "tokenizer", "pack")


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **environment},
    )


def bessemer(command: list[str]) -> dict[str, Any]:
    """Run a verb with --json and return what it printed."""
    process = start([*command, "--json"])
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    printed: dict[str, Any] = json.loads(out)
    return printed


def digests(summary: dict[str, Any]) -> dict[str, str]:
    return {stage["label"]: stage["digest"] for stage in summary["stages"]}


def statuses(summary: dict[str, Any]) -> dict[str, str]:
    return {stage["label"]: stage["status"] for stage in summary["stages"]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_corpus(tmp_path_factory.mktemp("corpus") / "library")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed") / "home"


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, home: Path) -> dict[str, Any]:
    """One run with one worker and one thread that nothing interrupts."""
    return bessemer(tiny.arguments(corpus, home, *IN_PROCESS, "--workers", "1", "--set", "execution.threads=1"))


def test_every_stage_is_built(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["status"] == "completed"
    assert set(statuses(undisturbed).values()) == {"built"}
    assert set(DATA_STAGES) | {"pretrain", "sft", "dpo", "int8", "fp4", "gate"} <= set(statuses(undisturbed))
    assert {row["model"] for row in undisturbed["models"]} == {"base", "sft", "dpo", "int8", "fp4"}
    sizes = {row["model"]: row["size_bytes"] for row in undisturbed["models"]}
    assert sizes["fp4"] < sizes["int8"] < sizes["dpo"]
    assert undisturbed["samples"]


def test_second_run_is_served(undisturbed: dict[str, Any], corpus: Path, home: Path) -> None:
    again = bessemer(tiny.arguments(corpus, home, *IN_PROCESS))
    assert set(statuses(again).values()) == {"cached"}
    assert digests(again) == digests(undisturbed)


def test_damage_is_noticed_and_rebuilt(undisturbed: dict[str, Any], corpus: Path, home: Path) -> None:
    """Before any other model is promoted in this home: the gate would have another champion to ask about."""
    found = digests(undisturbed)
    weights = home / "objects" / found["sft"] / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    for shard in (home / "objects" / found["filter"] / "attributes").iterdir():
        shard.unlink()
    again = bessemer(tiny.arguments(corpus, home, *IN_PROCESS))
    notes = {stage["label"]: stage["note"] for stage in again["stages"] if stage["status"] == "built"}
    assert set(notes) == {"filter", "sft"}
    assert all("has changed on disk" in note for note in notes.values())
    assert digests(again) == found


def test_a_changed_beta_reruns_dpo_and_what_follows(undisturbed: dict[str, Any], corpus: Path, home: Path) -> None:
    plan = bessemer(["plan", *tiny.arguments(corpus, home, "--set", "dpo.beta=0.2")[1:]])
    planned = {row["label"]: row for row in plan["stages"]}
    assert planned["dpo"]["status"] == "run"
    assert planned["dpo"]["reason"] == "dpo.beta: 0.1 → 0.2"
    assert planned["dpo"]["seconds_low"] < planned["dpo"]["seconds"] < planned["dpo"]["seconds_high"]
    changed = bessemer(tiny.arguments(corpus, home, *IN_PROCESS, "--set", "dpo.beta=0.2"))
    built = {label for label, status in statuses(changed).items() if status == "built"}
    assert built == {"dpo", "int8", "fp4", "evaluate_dpo", "evaluate_int8", "evaluate_fp4", "gate"}
    expected = {label for label, row in planned.items() if row["status"] != "cached"}
    assert built <= expected


def test_runs_are_found_by_tag_and_answers_read_as_a_table(
    undisturbed: dict[str, Any], corpus: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    tracked = bessemer(tiny.arguments(corpus, home, "--in-process"))
    assert {label for label, status in statuses(tracked).items() if status == "built"} <= {"gate"}  # of a new champion
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_tracking_uri(home))
    mlflow.set_tracking_uri(None)  # whatever other tests left
    query = f"tags.recipe = 'demo' AND tags.corpus = '{corpus}'"
    found = mlflow.search_runs(search_all_experiments=True, filter_string=query, output_format="list")
    assert [run.data.tags["bessemer.run_id"] for run in found] == [tracked["run_id"]]
    assert mlflow.search_runs(search_all_experiments=True, filter_string="tags.corpus = 'another'").empty
    info = found[0].info
    answers = mlflow.MlflowClient().load_table(info.experiment_id, "tables/samples.json", [info.run_id])
    shown = [(row["prompt"], row["answer"]) for row in undisturbed["samples"]]
    assert list(answers[["prompt", "answer"]].itertuples(index=False, name=None)) == shown


def test_two_workers_give_the_same_bytes(undisturbed: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    arguments = tiny.arguments(corpus, tmp_path, *IN_PROCESS, "--workers", "2", "--set", "execution.threads=2")
    other = bessemer(arguments)
    assert digests(other) == digests(undisturbed)


@pytest.mark.parametrize("stage", ["filter", "pretrain", "dpo"])
def test_killed_anywhere_and_run_again_ends_the_same(
    undisturbed: dict[str, Any], corpus: Path, tmp_path: Path, stage: str
) -> None:
    """SIGKILL to the whole process group while `stage` is at work."""
    process = start(tiny.arguments(corpus, tmp_path, *IN_PROCESS, "--workers", "2"))
    scratch = tmp_path / "scratch" / stage
    deadline = time.monotonic() + 300
    while not list(scratch.glob("*/*")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"{stage} never started"
        time.sleep(0.02)
    time.sleep(0.3 if stage == "filter" else 1.0)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = bessemer(tiny.arguments(corpus, tmp_path, *IN_PROCESS, "--workers", "2"))
    assert digests(again) == digests(undisturbed)
