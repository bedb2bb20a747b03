"""Pretraining: learn the language of the corpus, every token once per epoch, from random weights to a base model.

Or from the weights of an earlier one, with the same tokenizer and shape and a learning-rate schedule that begins anew.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from model.network.shape import AttentionStart, RopeScaling
from tasks.mechanism.launch.processes import launch
from tasks.mechanism.observe import TrainingRun
from tasks.mechanism.stage import Artifact, StageRun, stage
from tasks.train.job import (
    TrainingConfig,
    TrainingData,
    bytes_of_tokens,
    finish,
    is_first_process,
    place_objective,
    train,
)

if TYPE_CHECKING:
    from model.network.transformer import ModelConfig, Transformer
    from model.training.data import StepPlan, TokenSources, WindowBatches
    from model.training.loop import Validation

_WEIGHT_SHAPES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "qk_norm",
    "tied_embeddings",
)


MAX_NATS = 700.0
"""Of a perplexity's exponent: beyond, it is no number."""


class PretrainConfig(TrainingConfig):
    """The model's shape, how much it reads, and in what portions."""

    num_layers: int = Field(4, ge=1, le=256, description="Layers.")
    hidden_size: int = Field(256, ge=8, le=65536, description="Width of the residual stream.")
    num_heads: int = Field(4, ge=1, le=1024, description="Attention heads.")
    num_kv_heads: int = Field(2, ge=1, le=1024, description="Heads of keys and values; fewer make generation cheaper.")
    head_dim: int = Field(0, ge=0, le=1024, description="Size of a head; 0: hidden_size / num_heads.")
    intermediate_size: int = Field(704, ge=8, le=262144, description="Width inside the MLP.")
    context_length: int = Field(256, ge=8, le=1_048_576, description="The most tokens that the model is to read.")
    qk_norm: bool = Field(True, description="Whether queries and keys are normalised; then the export is a Qwen3.")
    tied_embeddings: bool = Field(False, description="Whether input embedding and output matrix are one.")
    attention_start: AttentionStart = Field(
        "induction", description="First weights of attention: with an induction head (two layers or more), or random."
    )
    rope_theta: float = Field(10_000.0, gt=1, description="Base wavelength of the rotary positions.")
    rope_scaling: Literal["default", "linear", "llama3", "yarn"] = Field(
        "default", description="How rotary positions are stretched for a longer context than was trained on before."
    )
    rope_scaling_factor: float = Field(1.0, ge=1, le=1024, description="How much longer the context becomes.")
    rope_original_context_length: int = Field(
        0, ge=0, le=1_048_576, description="Tokens read before the stretching; 0: context_length / rope_scaling_factor."
    )
    rope_low_freq_factor: float = Field(
        1.0, gt=0, le=1024, description="llama3: turns within the original context, below which a pair is stretched."
    )
    rope_high_freq_factor: float = Field(
        4.0, gt=0, le=1024, description="llama3: turns within the original context, above which a pair stays as it is."
    )
    rope_beta_fast: float = Field(
        32.0, gt=0, le=1024, description="yarn: turns within the original context, above which a pair stays as it is."
    )
    rope_beta_slow: float = Field(
        1.0, gt=0, le=1024, description="yarn: turns within the original context, below which a pair is stretched."
    )
    rope_attention_factor: float = Field(
        0.0, ge=0, le=16, description="yarn: factor on queries and keys; 0: the paper's 0.1 ln(factor) + 1."
    )
    sequence_length: int = Field(256, ge=8, le=1_048_576, description="Tokens of one training row.")
    initial_sequence_length: int = Field(
        0, ge=0, description="Tokens of a row at the start, doubling up to sequence_length; 0: no ramp."
    )
    batch_tokens: int = Field(4096, ge=8, description="Tokens of one step, over all processes.")
    initial_batch_tokens: int = Field(0, ge=0, description="Tokens of the first steps, doubling; 0: no ramp.")
    ramp_fraction: float = Field(0.3, gt=0, le=1, description="Share of training over which ramps reach their end.")
    steps: int = Field(0, ge=0, description="Steps to take; 0: as many as train_tokens or epochs say.")
    train_tokens: int = Field(0, ge=0, description="Tokens to train on; 0: as many as epochs say.")
    epochs: float = Field(1.0, gt=0, le=1000, description="How often each token is read, unless steps or tokens say.")
    document_attention: bool = Field(True, description="Whether attention stops at the borders of documents.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of the matrices under NorMuon or Muon.")
    z_loss: float = Field(0.0, ge=0, le=1, description="Weight of the squared log-normaliser in the loss.")
    validation_tokens: int = Field(200_000, ge=1, description="The most validation tokens to measure on.")

    @model_validator(mode="after")
    def _fits_together(self) -> "PretrainConfig":
        if self.sequence_length > self.context_length:
            raise ValueError(
                f"sequence_length {self.sequence_length} exceeds context_length {self.context_length}; "
                "raise context_length or shorten the rows"
            )
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is not a multiple of sequence_length {self.sequence_length}"
            )
        for name, start, end in (
            ("initial_sequence_length", self.initial_sequence_length, self.sequence_length),
            ("initial_batch_tokens", self.initial_batch_tokens, self.batch_tokens),
        ):
            doublings = math.log2(end / start) if start else 0.0
            if doublings < 0 or doublings != round(doublings):
                raise ValueError(f"{name} {start} does not reach {end} by doubling")
        if self.initial_batch_tokens % self.sequence_length:
            raise ValueError(f"initial_batch_tokens must be a multiple of sequence_length {self.sequence_length}")
        if (not self.head_dim or not self.qk_norm) and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; with head_dim and "
                "qk_norm it need not be, since then the export is a Qwen3"
            )
        if (self.rope_scaling == "default") != (self.rope_scaling_factor == 1):
            raise ValueError(
                f"rope_scaling {self.rope_scaling!r} and rope_scaling_factor {self.rope_scaling_factor:g} do not go "
                "together: a factor above 1 needs a kind of scaling (linear, llama3, yarn), and each of them a factor"
            )
        rope_scaling(self)
        return self


def rope_scaling(cfg: PretrainConfig) -> RopeScaling:
    """How the config stretches rotary positions.

    Raises:
        ValueError: values that do not fit together.
    """
    if cfg.rope_scaling == "default":
        return RopeScaling()
    return RopeScaling(
        kind=cfg.rope_scaling,
        factor=cfg.rope_scaling_factor,
        original_context_length=cfg.rope_original_context_length or int(cfg.context_length / cfg.rope_scaling_factor),
        low_freq_factor=cfg.rope_low_freq_factor,
        high_freq_factor=cfg.rope_high_freq_factor,
        beta_fast=cfg.rope_beta_fast,
        beta_slow=cfg.rope_beta_slow,
        attention_factor=cfg.rope_attention_factor,
    )


def model_shape(cfg: PretrainConfig, vocab_size: int) -> "ModelConfig":
    """The model that the config asks for."""
    from model.network.transformer import ModelConfig

    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=cfg.hidden_size,
        num_layers=cfg.num_layers,
        num_heads=cfg.num_heads,
        num_kv_heads=cfg.num_kv_heads,
        head_dim=cfg.head_dim or cfg.hidden_size // cfg.num_heads,
        intermediate_size=cfg.intermediate_size,
        context_length=cfg.context_length,
        rope_theta=cfg.rope_theta,
        qk_norm=cfg.qk_norm,
        tied_embeddings=cfg.tied_embeddings,
        rope_scaling=rope_scaling(cfg),
    )


def step_plan(cfg: PretrainConfig, tokens: int) -> "StepPlan":
    """Which share of a stream of `tokens` tokens each step takes."""
    from model.training.data import Ramp, plan_steps

    per_window, per_batch = cfg.sequence_length, cfg.batch_tokens // cfg.sequence_length
    first_batch = (cfg.initial_batch_tokens or cfg.batch_tokens) // cfg.sequence_length
    batch = Ramp(first_batch, per_batch, cfg.ramp_fraction)
    row = Ramp(cfg.initial_sequence_length or cfg.sequence_length, cfg.sequence_length, cfg.ramp_fraction)
    if cfg.steps:
        return plan_steps(batch.total(cfg.steps), batch, row, cfg.steps)
    if cfg.train_tokens:
        wanted = -(-cfg.train_tokens // per_window)
    else:
        wanted = round(cfg.epochs * ((tokens - 1) // per_window))
    return plan_steps(max(1, wanted), batch, row)


def text_batches(cfg: PretrainConfig, folder: Path, tokenizer_dir: Path) -> "WindowBatches":
    """The training batches: a function of the config and the tokens alone, so `trace` can ask which steps saw what."""
    from model.training.data import WindowBatches
    from model.vocabulary.tokenizer import Tokenizer
    from tasks.tokens.files import read_tokens

    tokenizer = Tokenizer.load(tokenizer_dir)
    stream = read_tokens(folder, "train")
    return WindowBatches(
        stream,
        step_plan(cfg, len(stream)),
        cfg.sequence_length,
        cfg.seed,
        bytes_of_tokens(tokenizer),
        tokenizer.endoftext_id if cfg.document_attention else -1,
    )


def _validation(cfg: PretrainConfig, folder: Path, tokenizer_dir: Path, sources: "TokenSources") -> "Validation":
    """Windows spread evenly over the validation split, as many as validation_tokens allows."""
    import numpy as np

    from model.training.data import Ramp, WindowBatches, plan_steps
    from model.training.loop import Validation
    from model.vocabulary.tokenizer import Tokenizer
    from tasks.tokens.files import read_tokens

    tokenizer = Tokenizer.load(tokenizer_dir)
    stream = read_tokens(folder, "validation")
    length = min(cfg.sequence_length, len(stream) - 1)
    plan = plan_steps(1, Ramp(1, 1), Ramp(length, length))
    endoftext = tokenizer.endoftext_id if cfg.document_attention else -1
    batches = WindowBatches(stream, plan, length, 0, bytes_of_tokens(tokenizer), endoftext, sources)
    count = min(batches.windows, max(1, cfg.validation_tokens // length))
    return Validation(batches, np.arange(count, dtype=np.int64) * batches.windows // count)


def language_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Nats per token, and bits per byte, which alone compare across tokenizers; both by source, where one was seen."""
    figures = {
        "loss": sums["nll"] / max(sums["labels"], 1),
        "bits_per_byte": sums["nll"] / math.log(2) / max(sums["bytes"], 1),
    }
    for name, size in sums.items():
        kind, _, source = name.partition("/")
        if kind == "bytes" and source and size:
            nats = sums[f"nll/{source}"]
            figures[f"bits_per_byte/{source}"] = nats / math.log(2) / size
            figures[f"perplexity/{source}"] = math.exp(min(nats / sums[f"labels/{source}"], MAX_NATS))
    return figures


def first_weights(cfg: PretrainConfig, vocab_size: int, inputs: Mapping[str, Path]) -> "Transformer":
    """The model before its first step: random, or the one in `inputs["start"]`.

    Raises:
        ValueError: that one has another tokenizer or shape. Its context may differ: positions have no weights.
    """
    from model.network.transformer import Transformer
    from tasks.models.folder import load_config, load_model
    from tasks.tokens.contract import check_contract

    shape = model_shape(cfg, vocab_size)
    transformer = Transformer(shape)
    if "start" not in inputs:
        transformer.initialize(cfg.seed, attention_start=cfg.attention_start)
        return transformer
    folder = inputs["start"]
    check_contract(folder, inputs["tokens"])
    found = load_config(folder)
    differing = [name for name in _WEIGHT_SHAPES if getattr(found, name) != getattr(shape, name)]
    if differing:
        both = "; ".join(f"{name} is {getattr(found, name)} there, {getattr(shape, name)} here" for name in differing)
        raise ValueError(
            f"Pretraining cannot go on from {folder}, which has another shape: {both}. Give pretrain the shape of the "
            "model that it starts from, or start from scratch."
        )
    transformer.load_state_dict(load_model(folder).state_dict())
    return transformer


def pretrain_job(run: TrainingRun, cfg: PretrainConfig, inputs: Mapping[str, Path]) -> None:
    """Train in this process, which may be one of several."""
    from model.network.flops import num_parameters
    from model.training.objectives import NextToken
    from tasks.tokens.contract import check_contract
    from tasks.tokens.files import read_meta, token_sources

    tokens_dir, tokenizer_dir = inputs["tokens"], inputs["tokenizer"]
    check_contract(tokenizer_dir, tokens_dir)
    meta = read_meta(tokens_dir)
    batches = text_batches(cfg, tokens_dir, tokenizer_dir)
    plan = step_plan(cfg, int(meta["train_tokens"]))
    tokens = float(plan.first_window[-1]) * cfg.sequence_length
    transformer = first_weights(cfg, int(meta["vocab_size"]), inputs)
    sources = token_sources(tokens_dir, "validation")
    parallel = place_objective(run, cfg, NextToken(transformer, cfg.z_loss, sources.names))
    validation = _validation(cfg, tokens_dir, tokenizer_dir, sources)
    data = TrainingData(batches, validation, language_figures, plan.steps, tokens)
    final = train(run, cfg, parallel, data)
    finish(run, parallel, tokenizer_dir, ("<|endoftext|>",))
    if is_first_process():
        final["val_perplexity"] = math.exp(min(final["val_loss"], MAX_NATS))
        figures = {
            "train_tokens": tokens,
            "steps": plan.steps,
            "parameters": num_parameters(transformer.config),
        }
        for name, value in {**figures, **final}.items():
            run.metric(name, value)


@stage("pretrain", version=3, rebuild="on-version", figures=("parameters", "train_tokens", "val_bits_per_byte"))
def pretrain(
    run: StageRun, cfg: PretrainConfig, tokens: Artifact, tokenizer: Artifact, start: Artifact | None = None
) -> None:
    """Write a base model in the Hugging Face layout; `start` is a base model to go on from."""
    going_on = {"start": start} if start else {}
    launch(run, pretrain_job, cfg, {"tokens": tokens, "tokenizer": tokenizer, **going_on})
