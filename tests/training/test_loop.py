"""The loop: what it computes does not depend on how the work is cut or interrupted, and divergence is undone."""

import copy
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.transformer import ModelConfig, Transformer
from model.training.checkpoint import Checkpoints
from model.training.data import Batch, Ints, Ramp, WindowBatches, plan_steps
from model.training.loop import AVERAGE_EVERY, Trainer, Validation
from model.training.meter import MACHINE_FIGURES, Meter
from model.training.objectives import NextToken
from model.training.parallel import Accelerated, Placement, gradient_norm
from model.training.place import place
from model.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=32,
    context_length=32,
)  # fmt: skip
WINDOW, BATCH = 16, 4
STEPS = 12
PEAK = 1e9  # FLOP/s that this device is said to reach


class Book:
    """A reporter that keeps what it is told, as a curve after all rewinds."""

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}
        self.said: list[str] = []
        self.trained: list[float] = [0.0]  # tokens, after each move of the bar

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.points.setdefault(step, {}).update({k: v for k, v in values.items() if k not in MACHINE_FIGURES})

    def rewind(self, step: int) -> None:
        self.points = {s: v for s, v in self.points.items() if s <= step}

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, description: str, total: float, unit: str) -> AbstractContextManager["Book"]:
        assert (description, unit) == ("train", "tokens")
        return nullcontext(self)

    def advance(self, amount: float) -> None:
        self.trained.append(self.trained[-1] + amount)

    def resume_at(self, done: float) -> None:
        self.trained.append(done)


def batches(steps: int = STEPS) -> WindowBatches:
    stream = (np.arange(2000) ** 2 // 7 % 61).astype(np.uint16)
    plan = plan_steps(steps * BATCH, Ramp(BATCH, BATCH), Ramp(WINDOW, WINDOW))
    return WindowBatches(stream, plan, WINDOW, 0, np.ones(64, dtype=np.float32))


def figures(sums: Mapping[str, float]) -> dict[str, float]:
    return {"loss": sums["nll"] / sums["labels"]}


def trainer(
    folder: Path,
    book: Book,
    *,
    data: Any = None,
    micro_batch_tokens: int = 1024,
    optimizer: OptimizerSettings | None = None,
    objective: NextToken | None = None,
    steps: int = STEPS,
    decay_fraction: float = 0.5,
    **changes: Any,
) -> tuple[Trainer, Accelerated]:
    if objective is None:
        objective = NextToken(Transformer(CONFIG))
        objective.transformer.initialize(1)
    schedule = ScheduleSettings(decay_fraction=decay_fraction)
    settings = LoopSettings(**{"checkpoint_every": 3, "evaluate_every": 0, **changes})
    parallel = place(objective, optimizer or OptimizerSettings(), "fp32", Placement("cpu"))
    assert isinstance(parallel, Accelerated)
    validation = Validation(batches(), np.arange(5))
    checkpoints = Checkpoints(folder)
    loop = Trainer(
        parallel, data or batches(steps), validation, figures, steps, schedule, settings, checkpoints, book,
        steps * BATCH * WINDOW, micro_batch_tokens, Meter(parallel.device, PEAK, None),
    )  # fmt: skip
    return loop, parallel


def weights(parallel: Accelerated) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in parallel.objective.state_dict().items()}


def test_it_learns_and_reports(tmp_path: Path) -> None:
    book = Book()
    loop, _ = trainer(tmp_path, book, steps=30, evaluate_every=10)
    final = loop.run()
    assert book.points[30]["loss"] < book.points[1]["loss"] - 0.2
    assert final["val_loss"] == book.points[30]["val_loss"] < book.points[10]["val_loss"]
    assert sorted(book.points) == list(range(1, 31))
    assert {"loss", "learning_rate", "grad_norm"} <= set(book.points[1])


def test_the_reported_rate_is_that_of_the_matrices(tmp_path: Path) -> None:
    book = Book()
    settings = OptimizerSettings(kind="adamw", learning_rate=3e-4, embedding_learning_rate=0.1, head_learning_rate=8e-3)
    trainer(tmp_path, book, optimizer=settings, steps=1)[0].run()
    assert book.points[1]["learning_rate"] == 3e-4


def test_utilisation_is_flops_over_the_peak(tmp_path: Path) -> None:
    class Speeds(Book):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            found.append((values["mfu"], values["tokens_per_s"]))

    found: list[tuple[float, float]] = []
    trainer(tmp_path, Speeds(), micro_batch_tokens=WINDOW)[0].run()
    matrices = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32) + 64 * 16  # two layers: q, o, k, v, MLP; and the head
    flops = 3 * (2 * matrices + 2 * 4 * 2 * 8 * WINDOW)  # attention: layers * 4 * heads * head_dim * row
    for utilisation, speed in found:
        assert utilisation == pytest.approx(speed * flops / PEAK, rel=1e-9)


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    whole, parts = Book(), Book()
    # So that gradients of rounding size make updates of rounding size; a step in bf16 would turn one bit into 1 %.
    settings = OptimizerSettings(epsilon=1e-4)
    a, model_a = trainer(tmp_path / "a", whole, optimizer=settings)
    b, model_b = trainer(tmp_path / "b", parts, optimizer=settings, micro_batch_tokens=WINDOW)
    a.run(), b.run()
    for step in whole.points:
        assert whole.points[step]["loss"] == pytest.approx(parts.points[step]["loss"], rel=1e-5)
    for name, tensor in weights(model_a).items():
        torch.testing.assert_close(tensor, weights(model_b)[name], atol=1e-4, rtol=1e-4)


def test_the_first_steps_are_those_of_plain_torch(tmp_path: Path) -> None:
    """Also catches an optimizer that has counted a step before the first."""
    objective = NextToken(Transformer(CONFIG))
    objective.transformer.initialize(1)
    plain = copy.deepcopy(objective.transformer)
    rate = 1e-2
    settings = OptimizerSettings(
        kind="adamw", learning_rate=rate, embedding_learning_rate=rate, head_learning_rate=rate,
        embedding_betas=(0.9, 0.95), head_betas=(0.9, 0.95), epsilon=1e-8, max_grad_norm=0.1,
    )  # fmt: skip
    loop, parallel = trainer(tmp_path, Book(), optimizer=settings, objective=objective, steps=3, decay_fraction=0.0)
    loop.run()
    reference = torch.optim.AdamW(plain.parameters(), lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    data = batches(3)
    for step in range(3):
        batch = data.batch(data.items(step), step)
        logits = plain(torch.from_numpy(batch.input_ids))
        F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.labels).flatten()).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        reference.step()
        reference.zero_grad()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(weights(parallel)[f"transformer.{name}"], tensor, atol=2e-5, rtol=1e-4)


class Stop(Exception):
    """The power went off."""


class Interrupted:
    """Batches that raise at a step, once."""

    def __init__(self, inner: WindowBatches, step: int) -> None:
        self._inner, self._step = inner, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def batch(self, items: Ints, step: int) -> Batch:
        if step == self._step:
            raise Stop
        return self._inner.batch(items, step)


@pytest.mark.parametrize("stopped_at", [0, 2, 3, 7, 11])
@pytest.mark.parametrize("kind", ["normuon", "adamw"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, stopped_at: int, kind: Any) -> None:
    options: dict[str, Any] = {"optimizer": OptimizerSettings(kind=kind), "average_fraction": 0.5, "evaluate_every": 4}
    whole, cut = Book(), Book()
    undisturbed, expected = trainer(tmp_path / "whole", whole, **options)
    final = undisturbed.run()
    first, _ = trainer(tmp_path / "cut", cut, data=Interrupted(batches(), stopped_at), **options)
    with pytest.raises(Stop):
        first.run()
    second, found = trainer(tmp_path / "cut", cut, **options)
    assert second.run() == final
    assert cut.points == whole.points
    assert cut.trained[-1] == whole.trained[-1] == STEPS * BATCH * WINDOW
    for name, tensor in weights(expected).items():
        assert torch.equal(tensor, weights(found)[name]), name


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    loop, _ = trainer(tmp_path, Book(), average_fraction=0.5)
    final = loop.run()
    again, _ = trainer(tmp_path, Book(), data=Interrupted(batches(), 0), average_fraction=0.5)
    assert again.run() == final


def test_averaged_weights_are_the_mean(tmp_path: Path) -> None:
    steps = 3 * AVERAGE_EVERY
    seen: list[dict[str, Tensor]] = []

    class Watched(Interrupted):
        def batch(self, items: Ints, step: int) -> Batch:
            if step % AVERAGE_EVERY == 0 and step:
                seen.append(weights(parallel))
            return self._inner.batch(items, step)

    loop, parallel = trainer(tmp_path / "plain", Book(), data=Watched(batches(steps), -1), steps=steps)
    loop.run()
    seen.append(weights(parallel))
    averaged, found = trainer(tmp_path / "mean", Book(), steps=steps, average_fraction=0.5)
    averaged.run()
    for name, tensor in weights(found).items():
        torch.testing.assert_close(tensor, (seen[1][name] + seen[2][name]) / 2)


class Poisoned(NextToken):
    """A loss that explodes on some batches, told by their first token."""

    def __init__(self, transformer: Transformer, poison: dict[int, float]) -> None:
        super().__init__(transformer)
        self.poison = poison

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, sums = super().forward(batch)
        factor = self.poison.get(int(batch["input_ids"].sum()), 1.0) if self.training else 1.0
        return loss * factor, sums * torch.tensor([factor, 1, 1, 1])


def poisoned(data: WindowBatches, steps: dict[int, float]) -> Poisoned:
    fingerprints = {int(data.batch(data.items(s), s).input_ids.sum()): factor for s, factor in steps.items()}
    objective = Poisoned(Transformer(CONFIG), fingerprints)
    objective.transformer.initialize(1)
    return objective


@pytest.mark.parametrize("factor", [math.nan, math.inf, 50.0])
def test_a_diverging_step_is_undone_and_left_out(tmp_path: Path, factor: float) -> None:
    data, book = batches(24), Book()
    loop, parallel = trainer(tmp_path, book, objective=poisoned(data, {19: factor}), steps=24)
    loop.run()
    assert sorted(book.points) == [s for s in range(1, 25) if s != 20]
    assert any("step 20 diverged" in line and "back to step 18" in line for line in book.said)
    assert all(torch.isfinite(t).all() for t in weights(parallel).values())
    # Killed after the divergence and started again, it leaves out the same step.
    for path in sorted(tmp_path.glob("step*.pt"))[1:]:
        path.unlink()
    again, found = trainer(tmp_path, Book(), objective=poisoned(data, {}), steps=24)
    again.run()
    for name, tensor in weights(parallel).items():
        assert torch.equal(tensor, weights(found)[name]), name


def test_three_divergences_in_a_row_stop_the_run_and_keep_the_evidence(tmp_path: Path) -> None:
    data = batches(24)
    poison = dict.fromkeys((19, 20, 21, 22), math.nan)
    for _ in range(2):  # and a rerun ends the same way
        loop, _ = trainer(tmp_path, Book(), objective=poisoned(data, poison), steps=24, checkpoint_every=6)
        with pytest.raises(ValueError, match=r"diverged 3 times in a row, at steps 20, 21, 22.*lower learning rates"):
            loop.run()
    assert [d.step for d in Checkpoints(tmp_path).divergences()] == [19, 20]


def test_gradient_norm() -> None:
    gradients = [torch.randn(7, 5), torch.randn(11)]
    expected = torch.cat([g.flatten() for g in gradients]).norm()
    assert gradient_norm(gradients) == pytest.approx(float(expected), rel=1e-6)


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    objective = NextToken(Transformer(CONFIG))
    with pytest.raises(ValueError, match="no CUDA device"):
        place(objective, OptimizerSettings(), "fp32", Placement("cuda"))
    with pytest.raises(ValueError, match="2 processes but 1 are running"):
        place(objective, OptimizerSettings(), "fp32", Placement("cpu", processes=2))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # what torchrun says
    with pytest.raises(ValueError, match=r"asked for 2 processes on this machine.* torch sees 1 CUDA devices"):
        place(NextToken(Transformer(CONFIG)), OptimizerSettings(), "fp32", Placement("auto", processes=2))
