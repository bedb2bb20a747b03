"""nanochat's GPT and optimizer as base_train.py runs them, from a copy of nanochat that lies outside this project.

https://github.com/karpathy/nanochat. Its schedules of learning rate, momentum and weight decay are those of
scripts/base_train.py; its arithmetic is set to bf16, which it would not choose by itself on a CPU.
"""

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WARMUP_STEPS, WARMDOWN_RATIO, FINAL_FACTOR = 40, 0.65, 0.05
REFERENCE_BATCH = 2**19  # tokens, at which base_train.py's learning rates were tuned


@dataclass(frozen=True)
class NanochatShape:
    """Depth, width and vocabulary; heads of 64 as in our models, all else nanochat's own."""

    vocab_size: int
    layers: int
    width: int
    sequence_length: int = 256


@dataclass(frozen=True)
class NanochatTuning:
    """What is swept. `learning_rates` multiplies base_train.py's rates for a batch of 2**19 tokens."""

    learning_rates: float = 0.4
    weight_decay: float = 0.0
    batch_tokens: int = 4096


def check_nanochat(folder: Path | None) -> str:
    """Why this peer cannot run; empty if it can."""
    if folder is None:
        return "nanochat is left out: give the folder of a copy by --nanochat FOLDER"
    if not (folder / "nanochat" / "gpt.py").is_file():
        return f"nanochat is left out: {folder} has no nanochat/gpt.py"
    return ""


class Nanochat:
    """One model in training; `batch_tokens` and `row_length` say what it wants at each step."""

    def __init__(self, folder: Path, shape: NanochatShape, tuning: NanochatTuning, seed: int = 0) -> None:
        os.environ["NANOCHAT_DTYPE"] = "bfloat16"
        sys.path.insert(0, str(folder))
        from nanochat.gpt import GPT, GPTConfig

        heads = shape.width // 64
        torch.manual_seed(seed)
        # Full windows throughout, as base_train.py advises where Flash Attention 3 is missing.
        self.model = GPT(
            GPTConfig(shape.sequence_length, shape.vocab_size, shape.layers, heads, heads, shape.width, "L")
        )
        self.compiled = torch.compile(self.model, dynamic=False)
        self.tuning, self.steps = tuning, 0
        self.model.init_weights()
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> Any:
        rates, weight_decay = self.tuning.learning_rates, self.tuning.weight_decay
        return self.model.setup_optimizer(
            unembedding_lr=0.008 * rates,  # base_train.py's own, all four
            embedding_lr=0.3 * rates,
            scalar_lr=0.5 * rates,
            matrix_lr=0.02 * rates,
            weight_decay=weight_decay,
        )

    @property
    def parameters(self) -> int:
        """All of them, the value embeddings included."""
        return sum(p.numel() for p in self.model.parameters())

    def batch_tokens(self, progress: float) -> int:
        """Tokens of a step."""
        return self.tuning.batch_tokens

    def row_length(self, progress: float) -> int:
        """Tokens of a row."""
        return self.model.config.sequence_len

    def warm_up(self, batch: dict[str, Tensor]) -> None:
        """Compile everything, then forget what was learnt."""
        state = torch.get_rng_state()
        self.step(batch, 0.0)
        torch.set_rng_state(state)
        self.model.init_weights()
        self.optimizer, self.steps = self._new_optimizer(), 0

    def step(self, batch: dict[str, Tensor], progress: float) -> None:
        """One optimizer step when a share `progress` of training is done."""
        self.accumulate_and_step([batch], progress)

    def accumulate_and_step(self, parts: list[dict[str, Tensor]], progress: float) -> None:
        """The same over a batch in equal parts."""
        for part in parts:
            loss = self.compiled(part["input_ids"], part["labels"]) / len(parts)
            loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(self.steps, progress)
            if group["kind"] == "muon":
                group["momentum"] = momentum(self.steps, progress)
                group["weight_decay"] = self.tuning.weight_decay * 0.5 * (1 + math.cos(math.pi * progress))
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        loss.item()
        self.steps += 1

    @torch.no_grad()
    def nats(self, batch: dict[str, Tensor]) -> float:
        """Summed loss of a batch."""
        return float(self.model(batch["input_ids"], batch["labels"], loss_reduction="sum"))


def learning_rate_factor(step: int, progress: float) -> float:
    """base_train.py's get_lr_multiplier, for a length of training given in seconds instead of steps."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    left = min(1.0, (1 - progress) / WARMDOWN_RATIO)
    return left + (1 - left) * FINAL_FACTOR


def momentum(step: int, progress: float) -> float:
    """base_train.py's get_muon_momentum, likewise."""
    if step < 400:
        return 0.85 + (0.97 - 0.85) * step / 400
    left = min(1.0, (1 - progress) / WARMDOWN_RATIO)
    return 0.97 * left + 0.90 * (1 - left)
