"""Pretraining: next-token prediction on the corpus, every token once per epoch, from random weights to a base model.

Or from the weights of an earlier one, with the same tokenizer and shape and a learning-rate schedule that begins anew.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from model.network.shape import Architecture, AttentionStart
from model.training.settings import OptimizerSettings, ScheduleSettings, WindowSettings
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
    from model.network.transformer import Transformer
    from model.training.data import StepPlan, TokenSources, WindowBatches
    from model.training.loop import Validation

# Not the context length, nor anything of RoPE: positions are computed, and have no weights.
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


# exp overflows a double beyond 709.
MAX_NATS = 700.0
"""Of a perplexity's exponent: beyond, it is no number."""


class PretrainConfig(TrainingConfig):
    """The model's architecture, the tokens it is trained on, and the batches."""

    model: Architecture = Field(Architecture(), description="Shape of the network; the tokenizer adds the vocabulary.")
    batches: WindowSettings = Field(WindowSettings(), description="Batch size, sequence length and training tokens.")
    # Momentum 0.9: 0.009 to 0.012 bits per byte below 0.95 with three seeds at 4,096 tokens a step (docs/LOG.md);
    # larger batches were not compared, and SFT keeps 0.95.
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(momentum=0.9), description="Optimizer, learning rates, momentum, weight decay and clipping."
    )
    schedule: ScheduleSettings = Field(ScheduleSettings(), description="Learning-rate schedule.")
    # Worth 0.11 bits per byte after 1.5M tokens, 0.07 after 4M (3M parameters); 0.16 in the demo (docs/training.md).
    attention_start: AttentionStart = Field(
        "induction", description="Initial attention weights: with an induction head (two layers or more), or random."
    )
    # Off: with 1e-4 1.7370 against 1.7366 bits per byte, no difference (docs/LOG.md, 2026-11-27).
    z_loss: float = Field(
        0.0, ge=0, le=1, description="Weight in the loss of the squared log-partition function (z-loss)."
    )
    validation_tokens: int = Field(200_000, ge=1, description="Maximum number of tokens in the validation loss.")

    @model_validator(mode="after")
    def _fits_together(self) -> "PretrainConfig":
        model, rope = self.model, self.model.rope_scaling
        if self.batches.sequence_length > model.context_length:
            raise ValueError(
                f"batches.sequence_length {self.batches.sequence_length} exceeds model.context_length "
                f"{model.context_length}; raise model.context_length or shorten the rows"
            )
        if (not model.head_dim or not model.qk_norm) and model.hidden_size % model.num_heads:
            raise ValueError(
                f"model.hidden_size {model.hidden_size} is not a multiple of model.num_heads {model.num_heads}; with "
                "model.head_dim and model.qk_norm it need not be, since then the export is a Qwen3"
            )
        head_dim = model.head_dim or model.hidden_size // model.num_heads
        if head_dim % 2:
            raise ValueError(f"model.head_dim is {head_dim}, and rotary embeddings turn pairs: it must be even")
        if (rope.kind == "default") != (rope.factor == 1) or rope.kind == "dynamic":
            raise ValueError(
                f"model.rope_scaling.kind {rope.kind!r} and model.rope_scaling.factor {rope.factor:g} do not go "
                "together: a factor above 1 needs a kind of scaling (linear, llama3, yarn), and each of them a factor"
            )
        return self


def step_plan(settings: WindowSettings, tokens: int) -> "StepPlan":
    """Which share of a stream of `tokens` tokens each step takes."""
    from model.training.data import Ramp, plan_steps

    s, per_window = settings, settings.sequence_length
    first_batch = (s.initial_batch_tokens or s.batch_tokens) // per_window
    batch = Ramp(first_batch, s.batch_tokens // per_window, s.ramp_fraction)
    row = Ramp(s.initial_sequence_length or per_window, per_window, s.ramp_fraction)
    if s.steps:
        return plan_steps(batch.total(s.steps), batch, row, s.steps)
    # Tokens asked for are rounded up to windows; of a stream the last token is only ever a label.
    wanted = -(-s.train_tokens // per_window) if s.train_tokens else round(s.epochs * ((tokens - 1) // per_window))
    return plan_steps(max(1, wanted), batch, row)


def text_batches(cfg: PretrainConfig, folder: Path, tokenizer_dir: Path) -> "WindowBatches":
    """The training batches: a function of the config and the tokens alone, so which step saw what can be computed."""
    from model.training.data import WindowBatches
    from model.vocabulary.tokenizer import Tokenizer
    from tasks.tokens.files import read_tokens

    tokenizer = Tokenizer.load(tokenizer_dir)
    stream = read_tokens(folder, "train")
    return WindowBatches(
        stream,
        step_plan(cfg.batches, len(stream)),
        cfg.batches.sequence_length,
        cfg.seed,
        bytes_of_tokens(tokenizer),
        # -1 is no id: no border is found then.
        tokenizer.endoftext_id if cfg.batches.document_attention else -1,
    )


def _validation(cfg: PretrainConfig, folder: Path, tokenizer_dir: Path, sources: "TokenSources") -> "Validation":
    """Windows spread evenly over the validation split, as many as validation_tokens allows."""
    from model.training.data import WindowBatches, fixed_rows
    from model.training.loop import Validation
    from model.vocabulary.tokenizer import Tokenizer
    from tasks.tokens.files import read_tokens

    tokenizer = Tokenizer.load(tokenizer_dir)
    stream = read_tokens(folder, "validation")
    length = min(cfg.batches.sequence_length, len(stream) - 1)
    # Full rows from the start: a validation knows no ramp, or its figures would not compare along the curve.
    plan = fixed_rows(length)
    endoftext = tokenizer.endoftext_id if cfg.batches.document_attention else -1
    batches = WindowBatches(stream, plan, length, 0, bytes_of_tokens(tokenizer), endoftext, sources)
    return Validation(batches, batches.spread(cfg.validation_tokens))


def language_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Nats per token, and bits per byte, which alone compare across tokenizers; both by source, where one was seen."""
    figures = {
        "loss": sums["nll"] / max(sums["labels"], 1),
        # Bytes of the text alone: special tokens count 0, their nats do.
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

    shape = cfg.model.shape(vocab_size)
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
    plan = step_plan(cfg.batches, int(meta["train_tokens"]))
    # Of the plan, not of the file: ramps and steps may take less of it or more.
    tokens = float(plan.first_window[-1]) * cfg.batches.sequence_length
    transformer = first_weights(cfg, int(meta["vocab_size"]), inputs)
    sources = token_sources(tokens_dir, "validation")
    parallel = place_objective(run, cfg, NextToken(transformer, cfg.z_loss, sources.names))
    validation = _validation(cfg, tokens_dir, tokenizer_dir, sources)
    data = TrainingData(batches, validation, language_figures, plan.steps, tokens)
    final = train(run, cfg, parallel, data)
    # A base model has seen no <|im_end|>: documents end in this one.
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
