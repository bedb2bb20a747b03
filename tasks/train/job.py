"""What the three training stages share: the fields of their configs, and the way from a config to the loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from model.network.shape import OptimizerName, Precision
from tasks.mechanism.observe import Bar, TrainingRun
from tasks.mechanism.stage import StageConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.network.transformer import Transformer
    from model.training.data import Batches
    from model.training.loop import Summarise, Validation
    from model.training.objectives import Objective
    from model.training.parallel import Parallel
    from model.vocabulary.tokenizer import Tokenizer
    from tasks.mechanism.execution import Execution


class TrainingConfig(StageConfig):
    """How the optimizer goes about it; the defaults are those of pretraining."""

    seed: int = Field(0, ge=0, le=2**31, description="Seed of weights and of the order of the data.")
    precision: Precision = Field(
        "bf16",
        description="Arithmetic of the model and of Muon; weights are kept in fp32. int8: of the matrices in training, "
        "the rest in bf16; fast on a CPU with VNNI, slow on all else. fp8: of the layers' matrices; needs a GPU such "
        "as an H100.",
    )
    optimizer: OptimizerName = Field(
        "normuon", description="NorMuon or Muon for the matrices and AdamW for the rest, or AdamW for everything."
    )
    matrix_learning_rate: float = Field(
        0.02, gt=0, le=10, description="Peak learning rate of the matrices under NorMuon or Muon."
    )
    learning_rate: float = Field(
        3e-3, gt=0, le=10, description="Peak learning rate of the norms; with adamw of the matrices too."
    )
    embedding_learning_rate: float = Field(0.1, gt=0, le=10, description="Peak learning rate of the input embedding.")
    head_learning_rate: float = Field(8e-3, gt=0, le=10, description="Peak learning rate of the output matrix.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of the matrices under NorMuon or Muon.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay of the matrices.")
    schedule: Literal["wsd", "cosine", "linear"] = Field("wsd", description="Course of the learning rate.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises.")
    decay_fraction: float = Field(0.5, ge=0, le=1, description="Share of the steps in which wsd falls to zero.")
    max_grad_norm: float = Field(1.0, ge=0, description="Norm that gradients are clipped to; 0: never.")
    average_fraction: float = Field(
        0.0, ge=0, le=0.9, description="Share of the last steps whose weights are averaged; 0: no averaging."
    )
    divergence_nats: float = Field(
        2.0, gt=0, description="How far above the usual loss a step may lie before it is undone and left out."
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints.")
    evaluate_every: int = Field(200, ge=0, description="Steps between validations; 0: only at the end.")
    recompute_layers: Literal["no", "all"] = Field(
        "no", description="Whether activations are computed again in the backward pass, to save memory."
    )


@dataclass(frozen=True)
class TrainingData:
    """What to train on, for how long, and what to measure."""

    batches: Batches
    validation: Validation
    summarise: Summarise
    steps: int
    tokens: float  # trained on in all, for the progress bar


class _LoopReporter:
    """Passes the loop's reports to the run, and tokens to the progress bar."""

    def __init__(self, run: TrainingRun, bar: Bar, tokens_per_step: float) -> None:
        self.log, self.rewind, self.say = run.log, run.rewind, run.say
        self._bar, self._tokens_per_step = bar, tokens_per_step

    def advance(self, step: int, tokens: float) -> None:
        """Move the bar; 0 tokens mean that `step` was reached before."""
        if tokens:
            self._bar.advance(tokens)
        else:
            self._bar.resume_at(step * self._tokens_per_step)


def place_objective(run: TrainingRun, cfg: TrainingConfig, objective: Objective) -> Parallel:
    """Put the objective and its optimizer on the processes that the execution asks for."""
    from model.training.optim import OptimizerSettings
    from model.training.parallel import Placement
    from model.training.place import place

    execution = run.execution
    objective.transformer.recompute_layers = cfg.recompute_layers == "all"
    _prepare_layers(objective.transformer, cfg.precision, execution)
    optimizer = OptimizerSettings(
        kind=cfg.optimizer,
        matrix_learning_rate=cfg.matrix_learning_rate,
        learning_rate=cfg.learning_rate,
        embedding_learning_rate=cfg.embedding_learning_rate,
        head_learning_rate=cfg.head_learning_rate,
        weight_decay=cfg.weight_decay,
        momentum=cfg.momentum,
        newton_schulz_precision="fp32" if cfg.precision == "fp32" else "bf16",
    )
    placement = Placement(
        execution.device, execution.processes, execution.strategy, execution.threads, execution.micro_batch_tokens
    )
    return place(objective, optimizer, cfg.precision, placement, cfg.max_grad_norm)


def _prepare_layers(transformer: Transformer, precision: Precision, execution: Execution) -> None:
    """Have matrices multiply in INT8 or FP8 and layers be compiled, where that is asked for and can be had."""
    from model.training.compile import compile_layers
    from model.training.float8 import check_float8, use_float8
    from model.training.int8 import use_int8
    from model.training.parallel import choose_device

    device = choose_device(execution.device)
    sharded_by_zero = execution.strategy == "deepspeed" and execution.processes > 1
    if sharded_by_zero and (precision in ("int8", "fp8") or execution.compile == "layers"):
        raise ValueError(
            "Strategy 'deepspeed' gathers weights inside the layers, which can then be neither compiled nor multiplied "
            f"in {precision}. Use strategy 'fsdp2' or 'ddp', or precision 'bf16' and execution.compile 'no'."
        )
    if precision == "int8" and execution.compile == "layers":
        raise ValueError(
            "Layers that multiply in int8 cannot be compiled: torch.compile does not look into its kernels. Use "
            "precision 'bf16', or execution.compile 'no'."
        )
    if precision == "int8":
        use_int8(transformer)
    if precision == "fp8":
        check_float8(device)
        use_float8(transformer)
    if execution.compile == "layers":
        compile_layers(transformer, device)


def train(run: TrainingRun, cfg: TrainingConfig, parallel: Parallel, data: TrainingData) -> dict[str, float]:
    """Train from the last checkpoint to the end; the final validation figures."""
    from model.training.checkpoint import Checkpoints
    from model.training.loop import LoopSettings, Trainer
    from model.training.meter import Meter, find_energy, peak_flops

    settings = LoopSettings(
        steps=data.steps,
        schedule=cfg.schedule,
        warmup_steps=cfg.warmup_steps,
        decay_fraction=cfg.decay_fraction,
        checkpoint_every=cfg.checkpoint_every,
        evaluate_every=cfg.evaluate_every,
        divergence_nats=cfg.divergence_nats,
        average_fraction=cfg.average_fraction,
    )
    device = parallel.device
    energy = find_energy(device, int(os.environ.get("LOCAL_RANK", "0")))
    meter = Meter(device, peak_flops(device, cfg.precision), energy)
    with _bar(run, data.tokens) as bar:
        trainer = Trainer(
            parallel,
            data.batches,
            data.validation,
            data.summarise,
            settings,
            Checkpoints(run.scratch / "checkpoints"),
            _LoopReporter(run, bar, data.tokens / max(data.steps, 1)),
            run.execution.micro_batch_tokens,
            meter,
        )
        return trainer.run()


@contextmanager
def _bar(run: TrainingRun, tokens: float) -> Iterator[Bar]:
    """The progress bar of the first process; the others have nothing to show."""
    if is_first_process():
        with run.progress("train", tokens, "tokens") as bar:
            yield bar
    else:
        yield _NoBar()


class _NoBar:
    """A bar that nobody sees."""

    def advance(self, amount: float) -> None:
        """Show nothing."""

    def resume_at(self, done: float) -> None:
        """Show nothing."""


def is_first_process() -> bool:
    """Whether this process writes the files and tells people."""
    return int(os.environ.get("RANK", "0")) == 0


def check_length(sequence_length: int, context_length: int) -> None:
    """Refuse rows that are longer than the model can read."""
    if sequence_length > context_length:
        raise ValueError(
            f"sequence_length is {sequence_length}, but the model reads at most {context_length} tokens "
            "(context_length). Use shorter rows, or pretrain with a longer context."
        )


def bytes_of_tokens(tokenizer: Tokenizer) -> NDArray[np.float32]:
    """(vocab,): bytes of text that each id stands for; 0 for special tokens."""
    import numpy as np

    special = set(tokenizer.special_ids.values())
    sizes = [0 if i in special else len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)]
    return np.array(sizes, dtype=np.float32)


def finish(run: TrainingRun, parallel: Parallel, tokenizer_dir: Path, end_tokens: tuple[str, ...]) -> None:
    """Write the trained model into the artifact; every process takes part, the first writes."""
    from model.network.transformer import Transformer
    from tasks.models.folder import save_model

    weights = parallel.weights()
    if not is_first_process():
        return
    transformer = Transformer(parallel.objective.transformer.config)
    transformer.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in weights.items()})
    save_model(run.out, transformer, tokenizer_dir, end_tokens)
