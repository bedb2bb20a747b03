"""THE training loop: pretraining, SFT and DPO differ by their objective and batches, not by how they are trained.

Given the same seed it takes the same steps after any interruption; a step that diverges is undone and left out.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from model.training.checkpoint import Checkpoints, Divergence
from model.training.data import Batches, Ints
from model.training.meter import Meter
from model.training.optim import learning_rate_factor, set_learning_rates
from model.training.parallel import Parallel
from model.training.settings import LoopSettings, ScheduleSettings

HISTORY = 64  # steps whose median loss is the usual one: a median, so that single outliers leave it as it is
HISTORY_MINIMUM = 16  # before that, nothing is known of what is usual
DIVERGENCES_IN_A_ROW = 3
AVERAGE_EVERY = 10  # steps; gathering sharded weights costs as much as a step

Summarise = Callable[[Mapping[str, float]], dict[str, float]]
"""From the sums of an objective to figures that people read, such as loss or bits per byte."""


class Bar(Protocol):
    """How far training has come, in tokens."""

    def advance(self, amount: float) -> None:
        """Count more tokens as trained on."""

    def resume_at(self, done: float) -> None:
        """Say how many an earlier run had trained on."""


class Reporter(Protocol):
    """Who is told how training goes."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point of the curves."""

    def rewind(self, step: int) -> None:
        """Points after `step` are void."""

    def say(self, text: str) -> None:
        """One line for people."""

    def progress(self, description: str, total: float, unit: str) -> AbstractContextManager[Bar]:
        """Training begins."""


@dataclass(frozen=True)
class Validation:
    """A fixed set of items to measure on; `prefix` goes before the names of its figures."""

    batches: Batches
    items: Ints
    prefix: str = "val_"


@dataclass
class _Progress:
    """What a checkpoint holds besides weights and optimizer."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    averaged: int = 0
    values: dict[str, float] = field(default_factory=dict)  # of the last step; logged after the checkpoint is safe


class Trainer:
    """One training job; `run` takes it from its last checkpoint to its end."""

    def __init__(
        self,
        parallel: Parallel,
        batches: Batches,
        validation: Validation,
        summarise: Summarise,
        steps: int,
        schedule: ScheduleSettings,
        settings: LoopSettings,
        checkpoints: Checkpoints,
        reporter: Reporter,
        tokens: float,
        micro_batch_tokens: int,
        meter: Meter,
    ) -> None:
        self._parallel, self._batches, self._validation = parallel, batches, validation
        self._steps, self._schedule, self._settings = steps, schedule, settings
        self._summarise, self._checkpoints = summarise, checkpoints
        self._reporter, self._tokens = reporter, tokens
        self._meter = meter
        self._micro_items = max(1, micro_batch_tokens // batches.item_tokens)
        self._progress = _Progress()
        self._average: dict[str, Tensor] = {}
        self._figures: dict[str, float] = {}
        self._divergences = checkpoints.divergences()

    def run(self) -> dict[str, float]:
        """Train to the end; returns the validation figures of the final weights, which the objective then holds.

        Raises:
            ValueError: three divergences in a row, or a batch that cannot be shared by the processes.
        """
        self._check_division()
        with self._reporter.progress("train", self._tokens, "tokens") as self._bar:
            return self._train()

    def _train(self) -> dict[str, float]:
        self._restore()
        steps, progress = self._steps, self._progress
        if progress.step:
            self._reporter.say(f"going on from step {progress.step} of {steps}")
        while progress.step < steps:
            values = {} if progress.step in self._skipped else self._take_step(progress.step)
            if values is None:
                self._restore()
                continue
            progress.step += 1
            progress.values = values
            self._average_weights()
            ended = progress.step == steps
            if ended or progress.step % self._settings.checkpoint_every == 0:
                self._save()  # before the evaluation, which may take long
            if ended and progress.averaged:
                self._restore()
            else:
                self._report()
        return self._figures

    def _report(self) -> None:
        """Log the step that was just made, with its validation where one is due."""
        step, every = self._progress.step, self._settings.evaluate_every
        values = dict(self._progress.values)
        if step == self._steps or (every and step % every == 0):
            self._figures = self.evaluate()
            values |= self._figures
        if values:
            self._reporter.log(step, values)

    @property
    def _skipped(self) -> set[int]:
        return {divergence.step for divergence in self._divergences}

    def _take_step(self, step: int) -> dict[str, float] | None:
        """The figures of one step; None if it diverged and training went back to a checkpoint."""
        self._meter.spent()  # on validation and checkpoints, or a step that was undone
        started = time.perf_counter()
        factor = self._learning_rate_factor(step)
        set_learning_rates(self._parallel.optimizer, factor)
        items = self._batches.items(step)
        sums = self._accumulate(items, step)
        norm = self._parallel.step()
        figures = self._summarise(sums)
        usual = median(self._progress.losses) if len(self._progress.losses) >= HISTORY_MINIMUM else math.inf
        loss = figures["loss"]
        if not (math.isfinite(loss) and math.isfinite(norm)) or loss > usual + self._settings.divergence_nats:
            self._undo(Divergence(step, self._checkpoints.steps()[-1], loss, usual, norm))
            return None
        self._progress.losses = [*self._progress.losses[1 - HISTORY :], loss]
        tokens = self._batches.tokens(items)
        self._bar.advance(tokens)
        rate = next(group["lr"] for group in self._parallel.optimizer.param_groups if group["name"] == "matrix")
        seconds = time.perf_counter() - started
        figures |= {"learning_rate": rate, "grad_norm": norm, "tokens_per_s": tokens / seconds}
        return figures | self._machine_figures(seconds)

    def _machine_figures(self, seconds: float) -> dict[str, float]:
        """What the step cost all processes; of memory what it took in the first."""
        spent = torch.tensor(self._meter.spent(), dtype=torch.float64, device=self._parallel.device)
        if self._parallel.world > 1:
            dist.all_reduce(spent)
        flops, joules = spent.tolist()
        return self._meter.figures(flops, joules, seconds, self._parallel.world)

    def _accumulate(self, items: Ints, step: int) -> dict[str, float]:
        parallel = self._parallel
        # DDP and FSDP2 average over processes, so the sum over the batch needs their number as a factor.
        scale = parallel.world / self._batches.weight(items)
        parts = self._parts(items)
        total = torch.zeros(len(parallel.objective.names), dtype=torch.float64, device=parallel.device)
        for number, part in enumerate(parts, 1):
            batch = self._batches.batch(part, step)
            self._meter.count(parallel.objective.transformer.config, batch)
            total += parallel.accumulate(batch.tensors(parallel.device), scale, last=number == len(parts))
        return self._reduced(total)

    def _parts(self, items: Ints) -> list[Ints]:
        """This process's items, cut to what it takes at once; equally many parts on each process."""
        mine = items[self._parallel.rank :: self._parallel.world]
        return [mine[i : i + self._micro_items] for i in range(0, len(mine), self._micro_items)]

    def _reduced(self, total: Tensor) -> dict[str, float]:
        if self._parallel.world > 1:
            dist.all_reduce(total)
        return dict(zip(self._parallel.objective.names, total.tolist(), strict=True))

    def _average_weights(self) -> None:
        """Take the present weights into the mean over the last share of training (LAWA, arXiv:2209.14981)."""
        left = self._steps - self._progress.step
        if left >= self._settings.average_fraction * self._steps or left % AVERAGE_EVERY:
            return
        weights = self._parallel.weights()
        self._progress.averaged += 1
        if not self._average:
            self._average = {name: tensor.clone() for name, tensor in weights.items()}
        for name, tensor in weights.items():
            self._average[name].lerp_(tensor, 1 / self._progress.averaged)

    def evaluate(self) -> dict[str, float]:
        """The validation figures of the present weights, each with the prefix."""
        validation, parallel = self._validation, self._parallel
        total = torch.zeros(len(parallel.objective.names), dtype=torch.float64, device=parallel.device)
        # Sharded models need every process in every forward pass, so a remainder is measured by all and divided.
        even = len(validation.items) // parallel.world * parallel.world
        for part in self._parts(validation.items[:even]):
            total += parallel.evaluate(validation.batches.batch(part, 0).tensors(parallel.device))
        if even < len(validation.items):
            batch = validation.batches.batch(validation.items[even:], 0).tensors(parallel.device)
            total += parallel.evaluate(batch).double() / parallel.world
        figures = self._summarise(self._reduced(total))
        return {f"{validation.prefix}{name}": value for name, value in figures.items()}

    def _learning_rate_factor(self, step: int) -> float:
        s = self._schedule
        return learning_rate_factor(s.kind, step, self._steps, s.warmup_steps, s.decay_fraction)

    def _check_division(self) -> None:
        world = self._parallel.world
        sizes = {len(self._batches.items(step)) for step in {0, self._steps - 1}}  # a ramp only doubles
        if any(size % world for size in sizes):
            raise ValueError(
                f"A batch of {min(sizes)} rows or pairs cannot be shared evenly by {world} processes. Use a number of "
                "processes that divides it, or a larger batch."
            )

    def _undo(self, divergence: Divergence) -> None:
        here = [d for d in self._divergences if d.checkpoint_step == divergence.checkpoint_step]
        seen = f"loss {divergence.loss:.4g} (usually {divergence.usual_loss:.4g}), gradient {divergence.grad_norm:.3g}"
        if len(here) + 1 >= DIVERGENCES_IN_A_ROW:
            steps = ", ".join(str(d.step + 1) for d in [*here, divergence])
            raise ValueError(
                f"Training diverged {len(here) + 1} times in a row, at steps {steps}: {seen} at the last. The evidence "
                f"is in {self._checkpoints.folder}. Use lower learning rates, a longer warm-up or gradient clipping."
            )
        self._divergences.append(divergence)
        if self._parallel.rank == 0:
            self._checkpoints.record(self._divergences)
        self._reporter.say(
            f"step {divergence.step + 1} diverged: {seen}; back to step {divergence.checkpoint_step}, without its batch"
        )

    def _restore(self) -> None:
        """Go back to the last checkpoint; before the first, what there is becomes it."""
        progress, state = self._progress, self._checkpoints.load()
        if not self._first_process_says(state is not None):
            self._save()
            self._reporter.rewind(0)
            return
        assert state is not None, "the first process read a checkpoint that this one cannot read"
        self._parallel.load(state)
        progress.step, progress.losses = state["step"], list(state["losses"])
        progress.averaged, progress.values = state["averaged"], dict(state["values"])
        self._average = {name: tensor.clone() for name, tensor in state["average"].items()}
        self._reporter.rewind(progress.step - 1)  # the last point is logged again below
        self._bar.resume_at(progress.step / max(self._steps, 1) * self._tokens)
        if progress.step:
            self._report()

    def _first_process_says(self, value: bool) -> bool:
        """The first process's `value`, for all: a late one may already see the checkpoint that the first has just made.

        Each looks before it asks, so nothing is written between the looking and the answer.
        """
        answer = torch.tensor([int(value)], device=self._parallel.device)
        if self._parallel.world > 1:
            dist.broadcast(answer, 0)
        return bool(answer.item())

    def _save(self) -> None:
        state: dict[str, Any] = self._parallel.state()
        progress = self._progress
        if self._parallel.rank == 0:
            if progress.averaged and progress.step == self._steps:
                state["model"] = self._average  # the mean is the result
            state |= {"step": progress.step, "losses": progress.losses, "values": progress.values}
            state |= {"averaged": progress.averaged, "average": self._average}
            self._checkpoints.save(progress.step, state)
        if self._parallel.world > 1:
            dist.barrier()  # nobody may look for the checkpoint before it is there
