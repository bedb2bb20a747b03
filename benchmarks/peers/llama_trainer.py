"""Hugging Face's LlamaForCausalLM under its Trainer: bf16 autocast and AdamW, as its documentation sets it up."""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from model.network.shape import ModelConfig


class _Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, ids: torch.Tensor) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._ids[index], "labels": self._ids[index]}  # transformers shifts labels itself


class _Clock(TrainerCallback):
    """The time of each step, from end to end: whatever the Trainer does between steps counts."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(self._now())

    def seconds(self, skip: int) -> list[float]:
        """The steps after the first `skip`."""
        return [after - before for before, after in zip(self.ends[skip - 1 :], self.ends[skip:])]


class LlamaTrainer:
    """The same shape as one of our models, but for QK-norm, which Llama has not."""

    def __init__(self, config: ModelConfig, batch_rows: int, rows_at_once: int, row: int) -> None:
        logging.set_verbosity_error()
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,  # as ours; nanochat has as many as heads, its default
                head_dim=config.head_dim,
                max_position_embeddings=row,
                tie_word_embeddings=config.tied_embeddings,
            )
        )
        self._batch_rows, self._rows_at_once, self._row = batch_rows, rows_at_once, row
        self._vocab_size = config.vocab_size

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(p.numel() for p in self.model.parameters())

    def step_seconds(
        self, steps: int, now: Callable[[], float] = time.process_time, on_cpu: bool = True
    ) -> list[float]:
        """The time of `steps` steps after two to get going."""
        clock = _Clock(now)
        ids = torch.randint(0, self._vocab_size, ((steps + 2) * self._batch_rows, self._row))
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=self._rows_at_once,
                gradient_accumulation_steps=self._batch_rows // self._rows_at_once,
                max_steps=steps + 2,
                bf16=True,
                use_cpu=on_cpu,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            Trainer(model=self.model, args=arguments, train_dataset=_Rows(ids), callbacks=[clock]).train()
        return clock.seconds(skip=2)
