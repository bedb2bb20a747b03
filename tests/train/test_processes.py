"""Pretraining killed and gone on with, on one process and on several: the same curve, or the same bits."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, obtain
from tasks.train.pretrain import pretrain
from tests.conftest import require_module, require_program
from tests.helpers.training import (
    assert_same_but_for_rounding,
    calm_pretrain,
    full_curve,
    killed_pretrain,
    make_inputs,
    tiny_pretrain,
)

Inputs = dict[str, Artifact]
STARTED_S = 600.0  # a hang, not slowness: two cores may be busy with other tests


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


KILLED = """
    import sys
    from pathlib import Path
    from tasks.mechanism.execution import Execution
    from tasks.train.pretrain import pretrain
    from tasks.mechanism.stage import Artifact, obtain
    from tests.helpers.training import killed_pretrain
    home, processes, strategy, *rest = sys.argv[1:]
    inputs = {n: Artifact(d, Path(p)) for n, d, p in zip(rest[::3], rest[1::3], rest[2::3])}
    execution = Execution(home=Path(home), threads=1, processes=int(processes), strategy=strategy)
    obtain(pretrain, killed_pretrain(), inputs, execution)
"""


def start(inputs: Inputs, home: Path, processes: int = 1, strategy: str = "ddp") -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    rest = [word for name, artifact in inputs.items() for word in (name, artifact.digest, str(artifact.path))]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(home), str(processes), strategy, *rest]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": path})


def kill_after_checkpoint(process: subprocess.Popen[bytes], home: Path, step: int) -> None:
    """kill -9 once the checkpoint before `step`, or a later one, is there."""
    deadline = time.monotonic() + STARTED_S
    while True:
        steps = [int(p.stem.removeprefix("step")) for p in home.glob("scratch/**/checkpoints/step*.pt")]
        if max(steps, default=-1) >= step:
            break
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def finish(inputs: Inputs, home: Path) -> str:
    """Run in this process to the end, from where a killed one stopped; the model's digest."""
    execution = Execution(home=home, threads=1)
    return obtain(pretrain, killed_pretrain(), inputs, execution).artifact.digest


def test_killed_at_five_steps_it_ends_with_the_same_bits(inputs: Inputs, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    process = start(inputs, cut)
    whole = finish(inputs, tmp_path / "whole")
    for number, step in enumerate(sorted(random.sample(range(1, 25), 5))):
        # A step is some milliseconds, so the kill falls wherever it may after the checkpoint waited for.
        kill_after_checkpoint(process if number == 0 else start(inputs, cut), cut, step)
    assert not list(cut.glob("keys/pretrain/*.json"))
    assert finish(inputs, cut) == whole
    assert full_curve(cut) == full_curve(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed"])
def test_from_one_process_to_two_and_back(inputs: Inputs, tmp_path: Path, strategy: str) -> None:
    """Checkpoints reshard, and the curve stays the same but for rounding."""
    if strategy == "deepspeed":
        require_module("deepspeed")
    finish(inputs, tmp_path / "whole")
    kill_after_checkpoint(start(inputs, tmp_path / "cut", 1), tmp_path / "cut", 8)
    kill_after_checkpoint(start(inputs, tmp_path / "cut", 2, strategy), tmp_path / "cut", 20)
    finish(inputs, tmp_path / "cut")
    whole, cut = full_curve(tmp_path / "whole"), full_curve(tmp_path / "cut")
    assert_same_but_for_rounding(whole, cut)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_give_the_curve_of_one(inputs: Inputs, tmp_path: Path, strategy: Any) -> None:
    """With NorMuon; tests/train/test_strategies.py has AdamW, under DeepSpeed too."""
    cfg = calm_pretrain(batches={"steps": 8}, precision="fp32", optimizer={"kind": "normuon"})
    # One process adds the gradient up in the parts that two have.
    share = cfg.batches.batch_tokens // 2
    one = Execution(home=tmp_path / "one", threads=1, micro_batch_tokens=share)
    two = Execution(home=tmp_path / "two", threads=1, processes=2, strategy=strategy)
    for execution in (one, two):
        obtain(pretrain, cfg, inputs, execution)
    assert_same_but_for_rounding(full_curve(one.home), full_curve(two.home))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_int8_on_two_processes(inputs: Inputs, tmp_path: Path, strategy: Any) -> None:
    """Scales are those of a process's own tokens, and FSDP2 passes weights on in bf16: the curve is near, not equal."""
    two = Execution(home=tmp_path / "two", threads=1, processes=2, strategy=strategy)
    homes = [(tmp_path / "usual", "bf16"), (tmp_path / "one", "int8")]
    runs = [(Execution(home=home, threads=1), precision) for home, precision in homes] + [(two, "int8")]
    for execution, precision in runs:
        obtain(pretrain, tiny_pretrain(batches={"steps": 8}, precision=precision), inputs, execution)
    usual, one, many = ([point["loss"] for point in full_curve(execution.home)] for execution, _ in runs)
    assert one == pytest.approx(usual, abs=0.02) and many == pytest.approx(usual, abs=0.02)
    assert len({usual[-1], one[-1], many[-1]}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_accelerate_can_start_the_processes(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    config = Path(__file__).parents[2] / "deployments" / "accelerate" / f"{name}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    monkeypatch.setenv("BESSEMER_LAUNCHER", " ".join(command))
    execution = Execution(home=tmp_path, threads=1, processes=2, strategy=name, device="cpu")
    assert obtain(pretrain, tiny_pretrain(batches={"steps": 2}), inputs, execution).manifest.metrics["steps"] == 2


@pytest.mark.slow
def test_what_was_asked_for_is_what_runs(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = Execution(home=tmp_path, threads=1, processes=2)
    monkeypatch.setenv("BESSEMER_LAUNCHER", sys.executable)  # a launcher that falls back to one process
    with pytest.raises(ValueError, match="asked for 2 processes but 1 are running"):
        obtain(pretrain, tiny_pretrain(), inputs, execution)


@pytest.mark.slow
def test_muon_under_zero_and_uneven_batches_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    zero = Execution(home=tmp_path, threads=1, processes=2, strategy="deepspeed")
    with pytest.raises(ValueError, match="Use optimizer 'adamw'"):
        obtain(pretrain, tiny_pretrain(), inputs, zero)
    with pytest.raises(ValueError, match="neither compiled nor multiplied in int8"):
        obtain(pretrain, tiny_pretrain(optimizer={"kind": "adamw"}, precision="int8"), inputs, zero)
    two = Execution(home=tmp_path, threads=1, processes=2)
    with pytest.raises(ValueError, match="7 rows or pairs cannot be shared evenly by 2"):
        obtain(pretrain, tiny_pretrain(batches={"batch_tokens": 7 * 64}), inputs, two)


@pytest.mark.slow
def test_compiled_layers_give_the_same_curve(inputs: Inputs, tmp_path: Path) -> None:
    require_program("g++")
    cfg = tiny_pretrain(batches={"steps": 4}, precision="fp32", optimizer={"kind": "adamw"}, model={"num_layers": 1})
    plain = Execution(home=tmp_path / "plain", threads=1)
    compiled = Execution(home=tmp_path / "compiled", threads=1, compile="layers")
    expected = obtain(pretrain, cfg, inputs, plain)
    torch._dynamo.utils.counters.clear()
    found = obtain(pretrain, cfg, inputs, compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one layer, in training and in validation
    assert found.manifest.key == expected.manifest.key
    for p, q in zip(full_curve(plain.home), full_curve(compiled.home), strict=True):
        assert q == pytest.approx(p, rel=1e-4)
