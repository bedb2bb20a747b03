"""What training reaches in a given time: every side sees the same text and tokenizer and gets the same CPU-seconds.

The clock counts the process's CPU time in steps alone; schedules follow the share of it that is spent, so that nobody
needs to guess how many steps will fit.
"""

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.training_text import ROW, TokenStreams
from flows.recipe import load_plan
from model.network.transformer import Transformer
from model.training.data import Ints, Ramp, WindowBatches, visit
from model.training.loop import AVERAGE_EVERY
from model.training.objectives import NextToken
from model.training.optim import learning_rate_factor, set_learning_rates
from tasks.mechanism.execution import Execution
from tasks.train.job import place_objective
from tasks.train.pretrain import PretrainConfig

CPU = torch.device("cpu")
EVALUATION_ROWS = 16
SPLITS = ("in_domain", "out_of_domain")


class Side(Protocol):
    """A model in training."""

    parameters: int

    def batch_tokens(self, progress: float) -> int:
        """Tokens of a step when a share `progress` of the time is spent."""

    def row_length(self, progress: float) -> int:
        """Tokens of a row, at most ROW."""

    def warm_up(self, batch: dict[str, Tensor]) -> None:
        """Compile what is compiled, leaving the model as it was."""

    def step(self, batch: dict[str, Tensor], progress: float) -> None:
        """One optimizer step."""

    def nats(self, batch: dict[str, Tensor]) -> float:
        """Summed loss of a batch."""


@dataclass(frozen=True)
class Outcome:
    """What a side reached: bits per byte of both held-out texts."""

    seconds: float
    steps: int
    tokens: int
    in_domain: float
    out_of_domain: float

    @property
    def speed(self) -> float:
        """Tokens per CPU-second."""
        return self.tokens / self.seconds

    def line(self) -> str:
        """For the reader who waits."""
        return (f"{self.in_domain:.4f} in domain, {self.out_of_domain:.4f} out of domain; {self.steps:,} steps, "
                f"{self.tokens / 1e6:.2f}M tokens, {self.speed:,.0f} per CPU-s, {self.seconds:.0f} CPU-s")  # fmt: skip


class OneProcess:
    """All that `place_objective` asks of a run."""

    execution = Execution(threads=1, device="cpu")


class Ours:
    """The pretrain stage's model, loss, optimizer and schedule, from its config."""

    def __init__(self, cfg: PretrainConfig, vocab_size: int) -> None:
        self.cfg = cfg
        self.transformer = Transformer(cfg.model.shape(vocab_size))
        self.parameters = sum(p.numel() for p in self.transformer.parameters())
        self._start()
        s = cfg.batches
        self.row_length = Ramp(s.initial_sequence_length or s.sequence_length, s.sequence_length, s.ramp_fraction).at
        self.batch_tokens = Ramp(s.initial_batch_tokens or s.batch_tokens, s.batch_tokens, s.ramp_fraction).at

    def _start(self) -> None:
        self.transformer.initialize(self.cfg.seed, attention_start=self.cfg.attention_start)
        self.parallel = place_objective(OneProcess(), self.cfg, NextToken(self.transformer, self.cfg.z_loss))
        self.steps = self.averaged = 0
        self.average: dict[str, Tensor] = {}

    def warm_up(self, batch: dict[str, Tensor]) -> None:
        """Kernels compile at their first call."""
        self.step(batch, 0.0)
        self._start()

    def step(self, batch: dict[str, Tensor], progress: float) -> None:
        """As the loop takes it."""
        factor = learning_rate_factor(
            # Steps of a million stand for the share of time: schedules are written in steps.
            self.cfg.schedule.kind,
            round(progress * 1e6),
            1_000_000,
            decay_fraction=self.cfg.schedule.decay_fraction,
        )
        if self.steps < self.cfg.schedule.warmup_steps:
            factor = (self.steps + 1) / self.cfg.schedule.warmup_steps
        set_learning_rates(self.parallel.optimizer, factor)
        self.parallel.accumulate(batch, 1 / batch["labels"].numel(), last=True)
        self.parallel.step()
        self.steps += 1
        if progress > 1 - self.cfg.loop.average_fraction and self.steps % AVERAGE_EVERY == 0:
            self._take_into_average()

    def _take_into_average(self) -> None:
        self.averaged += 1
        for name, weight in self.transformer.state_dict().items():
            self.average.setdefault(name, weight.clone()).lerp_(weight, 1 / self.averaged)

    def finish(self) -> None:
        """Leave training with the averaged weights, where they are averaged."""
        if self.average:
            self.transformer.load_state_dict(self.average)

    def nats(self, batch: dict[str, Tensor]) -> float:
        """Under bf16, as validation runs."""
        return float(self.parallel.evaluate(batch)[0])


def our_config(*settings: str, preset: str = "demo") -> PretrainConfig:
    """The pretrain section of a preset with `--set pretrain.…` settings."""
    return load_plan(preset, [f"pretrain.{setting}" for setting in settings]).recipe.pretrain


def train_for(side: Side, streams: TokenStreams, seconds: float, seed: int = 0, most_tokens: int = 0) -> Outcome:
    """Train for `seconds` CPU-seconds and measure; `most_tokens` bounds each held-out text (0: all of it)."""
    windows = streams.windows("train", seed)  # the same order of rows for every side
    side.warm_up(_rows(windows, visit(seed, 0, side.batch_tokens(0.0) // ROW, windows.windows), side.row_length(0.0)))
    taken = steps = 0
    spent = 0.0
    while spent < seconds:
        progress = spent / seconds
        count = side.batch_tokens(progress) // ROW
        batch = _rows(windows, visit(seed, taken, count, windows.windows), side.row_length(progress))
        # Making the batch is not counted, on no side.
        started = time.process_time()
        side.step(batch, progress)
        spent += time.process_time() - started
        taken, steps = taken + count, steps + 1
    if isinstance(side, Ours):
        side.finish()
    measured = {split: bits_per_byte(side, streams.windows(split), most_tokens) for split in SPLITS}
    return Outcome(spent, steps, taken * ROW, **measured)


def bits_per_byte(side: Side, windows: WindowBatches, most_tokens: int) -> float:
    """Over rows that are spread evenly over the text."""
    count = min(windows.windows, most_tokens // ROW) if most_tokens else windows.windows
    chosen = np.arange(count, dtype=np.int64) * windows.windows // count
    nats = text_bytes = 0.0
    for start in range(0, count, EVALUATION_ROWS):
        batch = _rows(windows, chosen[start : start + EVALUATION_ROWS], ROW)
        nats += side.nats(batch)
        text_bytes += float(batch["label_bytes"].sum())
    return nats / float(np.log(2)) / text_bytes


def _rows(windows: WindowBatches, items: Ints, length: int) -> dict[str, Tensor]:
    return windows.rows(items, length).tensors(CPU)
