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
from tasks.tokens.contract import check_contract
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
from tasks.train.replay import ReplayedText, answer_figures, answers, validation_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.training.mixture import MixedBatches
    from model.training.packing import PackedBatches, Sequences
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
    # docs/LOG.md, 2026-12-01: without, the demo's SFT costs the base a quarter of its bits per byte.
    replay_share: float = Field(
        0.3,
        ge=0,
        le=0.9,
        description="Share of each step's rows that are text of pretraining instead, so that the model forgets less of "
        "it; 0: none.",
    )
    replay_weight: float = Field(
        1.0, ge=0, le=100, description="Factor on the loss of the replayed text; 1: a token is a token."
    )
    too_long: Literal["truncate", "drop"] = Field(
        "truncate", description="Whether a conversation longer than sequence_length is truncated or dropped."
    )
    validation_conversations: int = Field(
        500, ge=1, description="Maximum number of conversations in the validation loss."
    )
    validation_tokens: int = Field(
        50_000, ge=1, description="Maximum number of tokens of text in the validation loss, where text is replayed."
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


@dataclass(frozen=True)
class _Rows:
    """The conversations of training and of validation as rows; counts: of them, for the manifest."""

    training: "PackedBatches"
    validation: "PackedBatches"
    counts: Mapping[str, float]


def _pack_conversations(cfg: SftConfig, folder: Path, tokenizer_dir: Path, token_bytes: "NDArray[np.float32]") -> _Rows:
    from model.training.packing import PackedBatches

    length = cfg.batches.sequence_length
    rendered = read_conversations(folder / "train.parquet", tokenizer_dir)
    training = encode_conversations(rendered, length, cfg.too_long)
    held_out = read_conversations(folder / "validation.parquet", tokenizer_dir, cfg.validation_conversations)
    validation = encode_conversations(held_out, length, cfg.too_long)
    return _Rows(
        PackedBatches(training.sequences, length, cfg.batches.rows_per_batch, cfg.seed, token_bytes),
        PackedBatches(validation.sequences, length, 1, 0, token_bytes),
        {
            "train_conversations": len(training.sequences),
            "validation_conversations": len(validation.sequences),
            "truncated": training.truncated,
            "dropped": training.dropped,
        },
    )


def _mix(cfg: SftConfig, conversations: "PackedBatches", text: ReplayedText | None) -> "MixedBatches":
    """The conversations, and among them the text that is replayed."""
    from model.training.mixture import MixedBatches

    replayed = [text.component(cfg.replay_share, cfg.replay_weight)] if text else []
    return MixedBatches([answers(conversations), *replayed], cfg.batches.rows_per_batch, cfg.seed)


def sft_job(run: TrainingRun, cfg: SftConfig, inputs: Mapping[str, Path]) -> None:
    """Train in this process, which may be one of several."""
    from model.training.objectives import NextToken
    from model.vocabulary.tokenizer import Tokenizer
    from tasks.models.folder import load_model

    base_dir = inputs["model"]
    transformer = load_model(base_dir)
    check_length(cfg.batches.sequence_length, transformer.config.context_length)
    tokenizer = Tokenizer.load(base_dir)
    token_bytes = bytes_of_tokens(tokenizer)
    rows = _pack_conversations(cfg, inputs["conversations"], base_dir, token_bytes)
    text = None
    if "tokens" in inputs:
        check_contract(base_dir, inputs["tokens"])
        text = ReplayedText(inputs["tokens"], cfg.batches.sequence_length, token_bytes, tokenizer.endoftext_id)
    batches = _mix(cfg, rows.training, text)
    # An epoch is one of the conversations.
    conversations_per_step = cfg.batches.rows_per_batch * (1 - cfg.replay_share if text else 1)
    steps = cfg.batches.steps or max(1, round(cfg.batches.epochs * len(rows.training.rows) / conversations_per_step))
    tokens = float(sum(batches.tokens(batches.items(step)) for step in range(steps)))
    cut, left_out = rows.counts["truncated"], rows.counts["dropped"]
    if is_first_process() and cut + left_out:
        run.say(f"conversations too long for a row: {cut} truncated, {left_out} left out")
    validation = validation_of(rows.validation, text, cfg.validation_tokens)
    parallel = place_objective(run, cfg, NextToken(transformer, sources=batches.names, weights=batches.weights))
    final = train(run, cfg, parallel, TrainingData(batches, validation, answer_figures, steps, tokens))
    finish(run, parallel, base_dir, ("<|im_end|>", "<|endoftext|>"))
    if is_first_process():
        figures = {**rows.counts, "train_tokens": tokens, "steps": steps}
        for name, value in {**figures, **final}.items():
            run.metric(name, value)


@stage("sft", version=3, rebuild="on-version", figures=("train_tokens", "val_loss", "val_text_bits_per_byte"))
def sft(
    run: StageRun, cfg: SftConfig, model: Artifact, conversations: Artifact, tokens: Artifact | None = None
) -> None:
    """Write a chat model in the Hugging Face layout; `tokens` is the text of pretraining that is replayed."""
    replayed = {"tokens": tokens} if tokens and cfg.replay_share else {}
    launch(run, sft_job, cfg, {"model": model, "conversations": conversations, **replayed})
