"""Checkpoints: what was saved comes back, old ones go, and a damaged one is not the end."""

import subprocess
import sys
from pathlib import Path

import torch

from model.training.checkpoint import KEPT, Checkpoints, Divergence


def test_round_trip(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.load() is None
    checkpoints.save(3, {"model": {"w": torch.arange(4.0)}, "step": 3, "losses": [0.1, 2.0]})
    state = Checkpoints(tmp_path / "new").load()
    assert state is not None and state["step"] == 3 and state["losses"] == [0.1, 2.0]
    assert torch.equal(state["model"]["w"], torch.arange(4.0))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (0, 5, 10, 1000):
        checkpoints.save(step, {"step": step})
    assert checkpoints.steps() == [10, 1000] and KEPT == 2


def test_half_a_checkpoint_is_none_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    checkpoints.save(2, {"step": 2})
    (tmp_path / "step000000003.partial").write_bytes(b"half")
    assert checkpoints.steps() == [1, 2]
    (tmp_path / "step000000002.pt").write_bytes(b"not a checkpoint")
    state = checkpoints.load()
    assert state is not None and state["step"] == 1


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
import torch
from model.training.checkpoint import Checkpoints

folder = Path(sys.argv[1])
checkpoints = Checkpoints(folder)
state = {str(n): torch.zeros(1 << 16) for n in range(20)}
started = time.perf_counter()
checkpoints.save(0, state)
seconds = time.perf_counter() - started
for number in (signal.SIGINT, signal.SIGTERM):  # what a shell starts in the background ignores SIGINT
    signal.signal(number, signal.default_int_handler)
interrupts = 0
for step in range(1, 41):
    number = (signal.SIGINT, signal.SIGTERM)[step % 2]
    timer = threading.Timer(seconds * step / 40, os.kill, (os.getpid(), number))
    try:
        timer.start()
        checkpoints.save(step, state)
        timer.join()
        time.sleep(1)
    except KeyboardInterrupt:
        interrupts += 1
    timer.join()
    assert not list(folder.glob("*.partial")), step
    assert checkpoints.load().keys() == state.keys(), step
assert interrupts == 40, interrupts
"""


def test_an_interrupt_waits_until_the_checkpoint_is_whole(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    torch.save({"step": 2, "path": Path("x")}, tmp_path / "step000000002.pt")  # needs code to be unpickled
    state = checkpoints.load()
    assert state is not None and state["step"] == 1


def test_divergences_are_remembered(tmp_path: Path) -> None:
    divergence = Divergence(step=7, checkpoint_step=4, loss=9.5, usual_loss=2.0, grad_norm=100.0)
    Checkpoints(tmp_path).record([divergence])
    assert Checkpoints(tmp_path).divergences() == [divergence]
