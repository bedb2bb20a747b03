"""What no training could carry out is refused before the first stage."""

from pathlib import Path

import pytest

from flows.check import check_training
from flows.plan import make_plan
from flows.recipe import load_plan
from flows.run import execute
from tasks.mechanism.execution import Execution
from tasks.track import open_tracker


@pytest.mark.parametrize(
    ("preset", "processes"),
    [("demo", 2), ("demo", 8), ("laptop", 4), ("gpu-1", 8), ("fineweb-edu", 8), ("node-8", 8), ("node-8", 16)],
)
def test_presets_can_be_shared_by_as_many_processes_as_the_docs_say(preset: str, processes: int) -> None:
    check_training(load_plan(preset).recipe, Execution(processes=processes))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["sft.batches.batch_tokens=512"],
            r"A step of sft has 2 rows, which 4 processes .*a larger sft\.batches\.batch_tokens",
        ),
        (["pretrain.batches.initial_batch_tokens=512"], r"A step of pretrain has 2 rows"),
        (["dpo.batches.batch_pairs=6"], r"A step of dpo has 6 pairs, .*a larger dpo\.batches\.batch_pairs"),
        (
            ["execution.strategy=deepspeed"],
            r"pretrain\.optimizer\.kind is 'normuon', which cannot run under .*'deepspeed'",
        ),
        (
            ["execution.strategy=deepspeed", "pretrain.optimizer.kind=adamw"],
            r"sft\.optimizer\.kind is 'normuon', .*Use sft\.optimizer\.kind=adamw",
        ),
    ],
)
def test_what_cannot_be_trained_stops_a_run_and_its_plan(settings: list[str], expected: str, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("Nothing of this is read.")
    sources = [f"{name}={text}" for name in ("corpus", "sft_data", "preference_data")]
    home = [f"execution.home={tmp_path / 'home'}", "execution.tracking_uri=none", "execution.processes=4"]
    plan = load_plan("demo", [*sources, *home, *settings])
    with pytest.raises(ValueError, match=expected):
        make_plan(plan.recipe, plan.execution)
    with pytest.raises(ValueError, match=expected):
        execute(plan.recipe, plan.execution, open_tracker(plan.execution))
    assert not (tmp_path / "home" / "runs").exists()
