"""Supervised fine-tuning: learn to answer, from conversations of which only the assistant's words are learnt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

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
    """Gentler rates than in pretraining, rows of packed conversations."""

    matrix_learning_rate: float = Field(0.01, gt=0, le=10, description="Peak learning rate of Muon.")
    learning_rate: float = Field(
        1e-3, gt=0, le=10, description="Peak learning rate of the norms; with adamw of the matrices too."
    )
    embedding_learning_rate: float = Field(0.03, gt=0, le=10, description="Peak learning rate of the input embedding.")
    head_learning_rate: float = Field(2e-3, gt=0, le=10, description="Peak learning rate of the output matrix.")
    schedule: Literal["wsd", "cosine", "linear"] = Field("linear", description="Course of the learning rate.")
    sequence_length: int = Field(256, ge=8, le=1_048_576, description="Tokens of one row of packed conversations.")
    batch_tokens: int = Field(4096, ge=8, description="Tokens of one step, over all processes.")
    steps: int = Field(0, ge=0, description="Steps to take; 0: as many as epochs say.")
    epochs: float = Field(1.0, gt=0, le=1000, description="How often each conversation is read, unless steps say.")
    too_long: Literal["truncate", "drop"] = Field(
        "truncate", description="What becomes of conversations that are longer than a row."
    )
    validation_conversations: int = Field(500, ge=1, description="The most validation conversations to measure on.")

    @property
    def rows_per_batch(self) -> int:
        """Rows of one step, over all processes."""
        return max(1, self.batch_tokens // self.sequence_length)


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
        fits = len(one.ids) <= sequence_length + 1
        if not fits and too_long == "drop":
            dropped += 1
            continue
        mask = one.loss_mask[: sequence_length + 1]
        if not any(mask[1:]):
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

    base_dir, conversations_dir = inputs["base"], inputs["conversations"]
    transformer = load_model(base_dir)
    check_length(cfg.sequence_length, transformer.config.context_length)
    token_bytes = bytes_of_tokens(Tokenizer.load(base_dir))
    rendered = read_conversations(conversations_dir / "train.parquet", base_dir)
    training = encode_conversations(rendered, cfg.sequence_length, cfg.too_long)
    held_out = read_conversations(conversations_dir / "validation.parquet", base_dir, cfg.validation_conversations)
    validation = encode_conversations(held_out, cfg.sequence_length, cfg.too_long)
    batches = PackedBatches(training.sequences, cfg.sequence_length, cfg.rows_per_batch, cfg.seed, token_bytes)
    measured = PackedBatches(validation.sequences, cfg.sequence_length, 1, 0, token_bytes)
    steps = cfg.steps or max(1, round(cfg.epochs * len(batches.rows) / cfg.rows_per_batch))
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


@stage("sft", version=2, rebuild="on-version")
def sft(run: StageRun, cfg: SftConfig, base: Artifact, conversations: Artifact) -> None:
    """Write a chat model in the Hugging Face layout."""
    launch(run, sft_job, cfg, {"base": base, "conversations": conversations})
