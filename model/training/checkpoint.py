"""Checkpoints that are whole or absent: written aside, flushed, renamed; read back without executing anything."""

import json
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

KEPT = 2  # the newest, and one before it should the newest not be readable


@dataclass(frozen=True)
class Divergence:
    """A step that was undone: what was seen there, and the checkpoint that training went back to."""

    step: int
    checkpoint_step: int
    loss: float
    usual_loss: float
    grad_norm: float


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block has ended, wherever their handlers are Python's.

    Their exceptions must not be raised in torch.save: its C++ writes through a Python stream and ends the process with
    "terminate called after throwing an instance of 'pybind11::error_already_set'".
    """
    interruptible = threading.current_thread() is threading.main_thread()  # Python interrupts no other
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    deferred = {number: handler for number, handler in handlers.items() if interruptible and callable(handler)}
    arrived: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    try:
        for number in deferred:
            signal.signal(number, remember)
        yield
    finally:
        for number, handler in deferred.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


class Checkpoints:
    """The checkpoints of one training job, in one folder that only the first process writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep `state` (nested dicts, lists, numbers, tensors) as the checkpoint before `step`.

        Where an interrupt arrives meanwhile, it is raised once the checkpoint is whole.
        """
        with interrupts_deferred():
            self._save(step, state)

    def _save(self, step: int, state: dict[str, Any]) -> None:
        path = self._path(step)
        aside = path.with_suffix(".partial")
        with aside.open("wb") as stream:
            torch.save(state, stream)
        _publish(aside, path)
        for old in self.steps()[:-KEPT]:
            self._path(old).unlink()

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, on the CPU; None without one."""
        for step in reversed(self.steps()):
            try:
                # Mapped, so that tensors are read when they are copied, not twice.
                state: dict[str, Any] = torch.load(self._path(step), map_location="cpu", weights_only=True, mmap=True)
            except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
                continue
            return state
        return None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(int(path.stem.removeprefix("step")) for path in self.folder.glob("step*.pt"))

    def divergences(self) -> list[Divergence]:
        """Every step that was undone so far; they are left out from now on, also after a restart."""
        path = self._divergence_path
        return [Divergence(**entry) for entry in json.loads(path.read_text())] if path.exists() else []

    def record(self, divergences: list[Divergence]) -> None:
        """Remember these divergences."""
        aside = self._divergence_path.with_suffix(".partial")
        aside.write_text(json.dumps([asdict(d) for d in divergences], indent=1))
        _publish(aside, self._divergence_path)

    @property
    def _divergence_path(self) -> Path:
        return self.folder / "divergences.json"

    def _path(self, step: int) -> Path:
        return self.folder / f"step{step:09d}.pt"


def _publish(aside: Path, path: Path) -> None:
    """Flush `aside` to the disk and give it its name; then flush the name."""
    _flush(aside)
    aside.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
