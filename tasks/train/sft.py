"""Supervised fine-tuning: learn to answer, from conversations, with the loss on the assistant's tokens alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from model.training.settings import OptimizerSettings, PackedSettings, ScheduleSettings
from tasks.mechanism.launch.processes import launch
from tasks.mechanism.observe import TrainingRun
from tasks.mechanism.stage import Artifact, StageRun, stage
from tasks.train.job import (
    TrainingConfig,
    TrainingData,
    bytes_of_tokens,
    check_length,
    finish,
    is_first_process,
    place_objective,
    train,
)

if TYPE_CHECKING:
    from model.training.packing import Sequences
    from model.vocabulary.chat_format import Rendered


class SftConfig(TrainingConfig):
    """Lower learning rates than in pretraining, and conversations packed into rows."""

    batches: PackedSettings = Field(PackedSettings(), description="Batch size, sequence length and number of epochs.")
    # Muon at 0.004 / these / the highest tried, 50 steps: 3.913 / 3.786 / 3.772 nats on held-out answers; the highest
    # forgets more of the text (docs/LOG.md, 2026-11-22).
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(
            matrix_learning_rate=0.01, learning_rate=1e-3, embedding_learning_rate=0.03, head_learning_rate=2e-3
        ),
        description="Optimizer, learning rates, momentum, weight decay and clipping.",
    )
    schedule: ScheduleSettings = Field(ScheduleSettings(kind="linear"), description="Learning-rate schedule.")
    too_long: Literal["truncate", "drop"] = Field(
        "truncate", description="Whether a conversation longer than sequence_length is truncated or dropped."
    )
    validation_conversations: int = Field(
        500, ge=1, description="Maximum number of conversations in the validation loss."
    )


@dataclass(frozen=True)
class Encoded:
    """Conversations as tokens, and how many were changed or left out on the way."""

    sequences: "Sequences"
    truncated: int
    dropped: int


def encode_conversations(
    rendered: Sequence["Rendered"], sequence_length: int, too_long: Literal["truncate", "drop"]
) -> Encoded:
    """Cut or leave out what does not fit into a row; leave out what then has nothing to learn."""
    from model.training.packing import join_sequences

    ids, masks = [], []
    truncated = dropped = 0
    for one in rendered:
        # A token more than the row: the last one is only ever a label.
        fits = len(one.ids) <= sequence_length + 1
        if not fits and too_long == "drop":
            dropped += 1
            continue
        mask = one.loss_mask[: sequence_length + 1]
        if not any(mask[1:]):  # the first token is never predicted
            dropped += 1
            continue
        truncated += not fits
        ids.append(one.ids[: sequence_length + 1])
        masks.append(mask)
    return Encoded(join_sequences(ids, masks), truncated, dropped)


def read_conversations(path: Path, tokenizer_dir: Path, limit: int = 0) -> list["Rendered"]:
    """The conversations of a Parquet file in the chat template; the first `limit`, or all with 0."""
    import pyarrow.parquet as pq

    from model.vocabulary.chat_format import render_conversation
    from model.vocabulary.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_dir)
    messages = pq.read_table(path, columns=["messages"])["messages"]
    chosen = messages.slice(0, limit) if limit else messages
    return [render_conversation(tokenizer, one) for one in chosen.to_pylist()]


def answer_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Nats per token of the assistant, and (in validation) the share of its tokens that were the likeliest."""
    labels = max(sums["labels"], 1)
    figures = {"loss": sums["nll"] / labels}
    return figures | ({"token_accuracy": sums["correct"] / labels} if sums["correct"] else {})


def sft_job(run: TrainingRun, cfg: SftConfig, inputs: Mapping[str, Path]) -> None:
    """Train in this process, which may be one of several."""
    import numpy as np

    from model.training.loop import Validation
    from model.training.objectives import NextToken
    from model.training.packing import PackedBatches
    from model.vocabulary.tokenizer import Tokenizer
    from tasks.models.folder import load_model

    base_dir, conversations_dir = inputs["model"], inputs["conversations"]
    transformer = load_model(base_dir)
    length, rows = cfg.batches.sequence_length, cfg.batches.rows_per_batch
    check_length(length, transformer.config.context_length)
    token_bytes = bytes_of_tokens(Tokenizer.load(base_dir))
    rendered = read_conversations(conversations_dir / "train.parquet", base_dir)
    training = encode_conversations(rendered, length, cfg.too_long)
    held_out = read_conversations(conversations_dir / "validation.parquet", base_dir, cfg.validation_conversations)
    validation = encode_conversations(held_out, length, cfg.too_long)
    batches = PackedBatches(training.sequences, length, rows, cfg.seed, token_bytes)
    measured = PackedBatches(validation.sequences, length, 1, 0, token_bytes)
    steps = cfg.batches.steps or max(1, round(cfg.batches.epochs * len(batches.rows) / rows))
    tokens = float(sum(batches.tokens(batches.items(step)) for step in range(steps)))
    if is_first_process() and training.truncated + training.dropped:
        run.say(f"conversations too long for a row: {training.truncated} truncated, {training.dropped} left out")
    parallel = place_objective(run, cfg, NextToken(transformer))
    every_row = Validation(measured, np.arange(len(measured.rows), dtype=np.int64))
    final = train(run, cfg, parallel, TrainingData(batches, every_row, answer_figures, steps, tokens))
    finish(run, parallel, base_dir, ("<|im_end|>", "<|endoftext|>"))
    if is_first_process():
        figures = {
            "train_conversations": len(training.sequences),
            "validation_conversations": len(validation.sequences),
            "truncated": training.truncated,
            "dropped": training.dropped,
            "train_tokens": tokens,
            "steps": steps,
        }
        for name, value in {**figures, **final}.items():
            run.metric(name, value)


@stage("sft", version=2, rebuild="on-version", figures=("train_tokens", "val_loss"))
def sft(run: StageRun, cfg: SftConfig, model: Artifact, conversations: Artifact) -> None:
    """Write a chat model in the Hugging Face layout."""
    launch(run, sft_job, cfg, {"model": model, "conversations": conversations})
