"""What the three training stages share: the fields of their configs, and the way from a config to the loop."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from model.network.shape import Precision
from model.training.settings import (
    LoopSettings,
    OptimizerSettings,
    PackedSettings,
    PairSettings,
    ScheduleSettings,
    WindowSettings,
)
from tasks.mechanism.observe import Silent, TrainingRun
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
    """What the training stages share; each says its own defaults of optimizer and schedule."""

    batches: WindowSettings | PackedSettings | PairSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    precision: Literal["auto", Precision] = Field(
        "bf16",
        description="Precision of the matrix products; weights stay in fp32. auto: the fastest of the processor. int8: "
        "all products in training; fast on a CPU with VNNI, slow on all else. fp8: the layers' products; needs a GPU "
        "such as an H100.",
    )
    loop: LoopSettings = Field(
        LoopSettings(), description="Validations, checkpoints, weight averaging and recovery from divergence."
    )
    recompute_layers: Literal["no", "all"] = Field(
        "no", description="Activation checkpointing: whether the backward pass recomputes activations to save memory."
    )
    seed: int = Field(0, ge=0, le=2**31, description="Seed of the initial weights and of the order of the data.")


@dataclass(frozen=True)
class TrainingData:
    """What to train on, for how long, and what to measure."""

    batches: Batches
    validation: Validation
    summarise: Summarise
    steps: int
    tokens: float  # trained on in all, for the progress bar


def place_objective(run: TrainingRun, cfg: TrainingConfig, objective: Objective) -> Parallel:
    """Put the objective and its optimizer on the processes that the execution asks for."""
    from model.training.parallel import Placement
    from model.training.place import place

    execution = run.execution
    precision = _settled(cfg)
    objective.transformer.recompute_layers = cfg.recompute_layers == "all"
    _prepare_layers(objective.transformer, precision, execution)
    placement = Placement(
        execution.device, execution.processes, execution.strategy, execution.threads, execution.micro_batch_tokens
    )
    return place(objective, cfg.optimizer, precision, placement)


def _settled(cfg: TrainingConfig) -> Precision:
    # Keys are made of what was computed, so a run settles `auto` before its first stage (tasks/train/precision.py).
    assert cfg.precision != "auto", "a stage is given the precision that it computes in"
    return cfg.precision


def _prepare_layers(transformer: Transformer, precision: Precision, execution: Execution) -> None:
    """Have matrices multiply in INT8 or FP8 and layers be compiled, where that is asked for and can be had."""
    from model.training.compile import compile_layers
    from model.training.parallel import choose_device
    from model.training.precision.float8 import check_float8, use_float8
    from model.training.precision.int8 import use_int8

    device = choose_device(execution.device)
    if execution.strategy == "deepspeed" and (precision in ("int8", "fp8") or execution.compile == "layers"):
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
    from model.training.loop import Trainer
    from model.training.meter import Meter, find_energy, peak_flops

    device = parallel.device
    # The launcher says which of the machine's GPUs is this process's.
    energy = find_energy(device, int(os.environ.get("LOCAL_RANK", "0")))
    meter = Meter(device, peak_flops(device, _settled(cfg)), energy)
    trainer = Trainer(
        parallel,
        data.batches,
        data.validation,
        data.summarise,
        data.steps,
        cfg.schedule,
        cfg.loop,
        Checkpoints(run.scratch / "checkpoints"),
        run if is_first_process() else Silent(),  # or each metric would be told once a process
        data.tokens,
        run.execution.micro_batch_tokens,
        meter,
    )
    return trainer.run()


def is_first_process() -> bool:
    """Whether this process writes the files and tells people."""
    return int(os.environ.get("RANK", "0")) == 0


def check_length(sequence_length: int, context_length: int) -> None:
    """Refuse rows that are longer than the model can read."""
    if sequence_length > context_length:
        raise ValueError(
            f"batches.sequence_length is {sequence_length}, but the model reads at most {context_length} tokens "
            "(pretrain.model.context_length). Use shorter rows, or pretrain with a longer context."
        )


def bytes_of_tokens(tokenizer: Tokenizer) -> NDArray[np.float32]:
    """(vocab,): bytes of text that each id stands for; 0 for special tokens."""
    import numpy as np

    special = set(tokenizer.special_ids.values())
    # 0: bits per byte are over the text, which has no special tokens in it.
    sizes = [0 if i in special else len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)]
    return np.array(sizes, dtype=np.float32)


def finish(run: TrainingRun, parallel: Parallel, tokenizer_dir: Path, end_tokens: tuple[str, ...]) -> None:
    """Write the trained model into the artifact; every process takes part, the first writes."""
    from model.network.transformer import Transformer
    from tasks.models.folder import save_model

    # Before any process leaves: sharded weights are gathered from all.
    weights = parallel.weights()
    if not is_first_process():
        return
    transformer = Transformer(parallel.objective.transformer.config)
    # The objective holds the model as `transformer`; on disk it has the names of Hugging Face.
    transformer.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in weights.items()})
    save_model(run.out, transformer, tokenizer_dir, end_tokens)
