"""The settings of training as plain data, free of torch: batches, optimizer, schedule, loop; each a form's section."""

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from model.network.shape import OptimizerName
from model.settings import SETTINGS

Schedule = Literal["wsd", "cosine", "linear"]
_Beta = Annotated[float, Field(ge=0, lt=1)]


class StepSize(NamedTuple):
    """How many items the smallest step of a training has for its processes to share, and which field says so."""

    items: int
    unit: Literal["rows", "pairs"]
    field: str


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class WindowSettings:
    """How a stream of text is cut into steps: windows of one length, of which each epoch reads every one once."""

    sequence_length: int = Field(default=256, ge=8, le=1_048_576, description="Tokens of one training sequence.")
    # 2,048 had 1.523 where this had 1.497 bits per byte after equal time, at 4 layers of 256.
    batch_tokens: int = Field(default=4096, ge=8, description="Tokens of one optimizer step, over all processes.")
    train_tokens: int = Field(default=0, ge=0, description="Tokens to train on; 0: as many as epochs say.")
    epochs: float = Field(
        default=1.0, gt=0, le=1000, description="Passes over the training tokens, unless steps or train_tokens say."
    )
    steps: int = Field(default=0, ge=0, description="Optimizer steps; 0: as many as train_tokens or epochs say.")
    initial_sequence_length: int = Field(
        default=0, ge=0, description="Sequence length at the start, doubling up to sequence_length; 0: no ramp."
    )
    initial_batch_tokens: int = Field(
        default=0, ge=0, description="Tokens of the first optimizer steps, doubling up to batch_tokens; 0: no ramp."
    )
    # 64 to 256 over 0.3: 2.051 for 2.064 bits per byte and 7 % more tokens per CPU-second (docs/LOG.md, 2026-11-22);
    # no gain beside an induction head (2026-11-27).
    ramp_fraction: float = Field(
        default=0.3, gt=0, le=1, description="Share of training after which both ramps have reached their end."
    )
    # No worse (1.866 for 1.869 bits per byte; docs/LOG.md, 2026-11-22), and packing then matches fine-tuning.
    document_attention: bool = Field(
        default=True, description="Whether a token attends to its own document only (intra-document causal masking)."
    )

    @property
    def smallest_step(self) -> StepSize:
        """The first step; those after it are this one, doubled."""
        return StepSize(
            (self.initial_batch_tokens or self.batch_tokens) // self.sequence_length, "rows", "batch_tokens"
        )

    @model_validator(mode="after")
    def _divides_evenly(self) -> "WindowSettings":
        for name, tokens in (("batch_tokens", self.batch_tokens), ("initial_batch_tokens", self.initial_batch_tokens)):
            if tokens % self.sequence_length:
                raise ValueError(f"{name} {tokens} is not a multiple of sequence_length {self.sequence_length}")
        for name, start, end in (
            ("initial_sequence_length", self.initial_sequence_length, self.sequence_length),
            ("initial_batch_tokens", self.initial_batch_tokens, self.batch_tokens),
        ):
            doublings = math.log2(end / start) if start else 0.0
            if doublings < 0 or doublings != round(doublings):
                raise ValueError(f"{name} {start} does not reach {end} by doubling")
        return self


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PackedSettings:
    """How conversations are packed into rows, and rows into steps."""

    sequence_length: int = Field(
        default=256, ge=8, le=1_048_576, description="Tokens of one row, into which conversations are packed."
    )
    batch_tokens: int = Field(default=4096, ge=8, description="Tokens of one optimizer step, over all processes.")
    epochs: float = Field(default=1.0, gt=0, le=1000, description="Passes over the conversations, unless steps say.")
    steps: int = Field(default=0, ge=0, description="Optimizer steps; 0: as many as epochs say.")

    @property
    def rows_per_batch(self) -> int:
        """Rows of one step, over all processes."""
        return max(1, self.batch_tokens // self.sequence_length)

    @property
    def smallest_step(self) -> StepSize:
        """Every step has as many rows."""
        return StepSize(self.rows_per_batch, "rows", "batch_tokens")


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PairSettings:
    """How preference pairs make steps."""

    sequence_length: int = Field(
        default=256, ge=8, le=1_048_576, description="Longest prompt with its answer, in tokens."
    )
    batch_pairs: int = Field(
        default=16, ge=1, description="Preference pairs of one optimizer step, over all processes."
    )
    epochs: float = Field(default=1.0, gt=0, le=1000, description="Passes over the preference pairs, unless steps say.")
    steps: int = Field(default=0, ge=0, description="Optimizer steps; 0: as many as epochs say.")

    @property
    def smallest_step(self) -> StepSize:
        """Every step has as many pairs."""
        return StepSize(self.batch_pairs, "pairs", "batch_pairs")


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class OptimizerSettings:
    """What to optimise with. Learning rates are peaks, multiplied by `learning_rate_factor` at each step."""

    # NorMuon over Muon: 0.006 bits per byte with random first weights, nothing beside an induction head (docs/LOG.md).
    kind: OptimizerName = Field(
        default="normuon",
        description="NorMuon or Muon for the matrices with AdamW for the rest, or AdamW for everything.",
    )
    # 0.01 costs 0.008 bits per byte, 0.04 costs 0.064 (docs/LOG.md, 2026-11-27, as are the figures below).
    matrix_learning_rate: float = Field(
        default=0.02, gt=0, le=10, description="Peak learning rate of the layers' matrices under NorMuon or Muon."
    )
    # Of AdamW alone: 0.0015 and 0.006 have 1.787 and 2.180 where this has 1.734.
    learning_rate: float = Field(
        default=3e-3,
        gt=0,
        le=10,
        description="Peak AdamW learning rate of the norms; under adamw of the layers' matrices too.",
    )
    # A tenth of it costs 0.06 bits per byte.
    embedding_learning_rate: float = Field(
        default=0.1, gt=0, le=10, description="Peak AdamW learning rate of the input embedding."
    )
    # After 3.9M tokens 1.489 bits per byte, where 0.004 has 1.495 and 0.016 1.490.
    head_learning_rate: float = Field(
        default=8e-3, gt=0, le=10, description="Peak AdamW learning rate of the output matrix (LM head), tied or not."
    )
    # 0.9 is better by 0.009 to 0.012 at 4,096 tokens a step (three seeds); larger batches were not compared.
    momentum: float = Field(
        default=0.95, ge=0, lt=1, description="Nesterov momentum of the layers' matrices under NorMuon or Muon."
    )
    # 0.1 gained 0.003 with one seed, 0.2 lost 0.02: not settled.
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled weight decay of the layers' matrices.")
    # Without clipping 1.7363 for 1.7366 bits per byte: it costs nothing.
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="Global gradient norm above which gradients are clipped to it; 0: no clipping."
    )
    betas: tuple[_Beta, _Beta] = Field(
        default=(0.9, 0.95), description="AdamW's decay rates of the first and second moment, of norms and matrices."
    )
    # A token's row has a gradient only where the token occurs, so its second moment needs a longer memory.
    embedding_betas: tuple[_Beta, _Beta] = Field(
        default=(0.8, 0.995), description="AdamW's decay rates of the first and second moment, of the input embedding."
    )
    # Both pairs together took 1.7396 to 1.7290 bits per byte (2026-11-25).
    head_betas: tuple[_Beta, _Beta] = Field(
        default=(0.8, 0.96),
        description="AdamW's decay rates of the first and second moment, of the output matrix (LM head).",
    )
    epsilon: float = Field(default=1e-10, gt=0, le=1, description="Term added to AdamW's denominator.")


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ScheduleSettings:
    """The course of the learning rate, as a factor on each peak."""

    # Cosine costs 0.050 bits per byte, linear decay from the start 0.029 (docs/LOG.md, 2026-11-27).
    kind: Schedule = Field(
        default="wsd",
        description="Learning-rate schedule: warmup-stable-decay (wsd), cosine or linear decay, all to zero.",
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="Optimizer steps over which the learning rate rises linearly to its peak."
    )
    # 0.3 and 0.7 cost 0.005 and 0.006; falling as 1 - sqrt(progress) was no better.
    decay_fraction: float = Field(
        default=0.5, ge=0, le=1, description="Share of the steps, the last, over which wsd decays linearly to zero."
    )


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class LoopSettings:
    """What the loop does beside steps. Intervals are in optimizer steps."""

    evaluate_every: int = Field(
        default=200, ge=0, description="Optimizer steps between validations; 0: only at the end."
    )
    checkpoint_every: int = Field(default=200, ge=1, description="Optimizer steps between checkpoints.")
    # The mean of the last tenth was worse by 0.005 bits per byte (docs/LOG.md, 2026-11-27).
    average_fraction: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="Share of the steps, the last, whose weights are averaged (LAWA); 0: none.",
    )
    divergence_nats: float = Field(
        default=2.0,
        gt=0,
        description="Rise of the loss above its running median at which a step is undone and skipped.",
    )
