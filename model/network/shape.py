"""The shape of a model as plain data, free of torch, so that plans and forms can reason about it at once."""

from dataclasses import fields, replace
from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from model.settings import SETTINGS

Precision = Literal["fp32", "bf16", "int8", "fp8"]
"""Arithmetic of a model; its master weights are fp32. int8: of all matrices, in training; fp8: of the layers'
matrices. All else runs in bf16."""
OptimizerName = Literal["normuon", "muon", "adamw"]
AttentionStart = Literal["induction", "random"]
RopeKind = Literal["default", "linear", "llama3", "yarn", "dynamic"]


@dataclass(frozen=True, config=SETTINGS)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those trained on.

    `default` none; `linear` positions divided by `factor` (arXiv:2306.15595); `llama3` only long wavelengths, with a
    smooth border (Llama 3.1); `yarn` per dimension by its number of rotations, with a temperature (arXiv:2309.00071);
    `dynamic` none up to the model's own context length, and a longer base the further a text goes beyond it.
    """

    kind: RopeKind = Field(
        default="default",
        description="Method that stretches the rotary frequencies; dynamic is for models from elsewhere alone.",
    )
    factor: float = Field(default=1.0, ge=1, le=1024, description="Ratio of the context length to the original one.")
    original_context_length: int = Field(
        default=0,
        ge=0,
        le=1_048_576,
        description="Context length in tokens before the stretching; 0: context_length / factor.",
    )
    low_freq_factor: float = Field(
        default=1.0,
        gt=0,
        le=1024,
        description="llama3: rotations within the original context up to which a frequency is divided by factor.",
    )
    high_freq_factor: float = Field(
        default=4.0,
        gt=0,
        le=1024,
        description="llama3: rotations within the original context from which a frequency is left unchanged.",
    )
    beta_fast: float = Field(
        default=32.0,
        gt=0,
        le=1024,
        description="yarn: rotations within the original context from which a frequency is left unchanged.",
    )
    beta_slow: float = Field(
        default=1.0,
        gt=0,
        le=1024,
        description="yarn: rotations within the original context up to which a frequency is divided by factor.",
    )
    attention_factor: float = Field(
        default=0.0, ge=0, le=16, description="yarn: scale of cosine and sine; 0: the paper's 0.1 ln(factor) + 1."
    )

    @model_validator(mode="after")
    def _frequencies_are_in_order(self) -> "RopeScaling":
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"llama3 RoPE scaling needs high_freq_factor > low_freq_factor, got {self.high_freq_factor} and "
                f"{self.low_freq_factor}."
            )
        return self


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Architecture:
    """A decoder but for its vocabulary, which the tokenizer brings. Sizes are in elements, lengths in tokens."""

    # 6 layers gain 0.004 bits per byte at 0.7 of the speed (docs/LOG.md, 2026-11-27).
    num_layers: int = Field(default=4, ge=1, le=256, description="Number of decoder layers.")
    hidden_size: int = Field(default=256, ge=8, le=65536, description="Width of the residual stream.")
    num_heads: int = Field(default=4, ge=1, le=1024, description="Number of attention heads (query heads).")
    # As many as num_heads did not pay: 0.95 of the speed (docs/LOG.md, 2026-11-25).
    num_kv_heads: int = Field(
        default=2,
        ge=1,
        le=1024,
        description="Number of key and value heads; fewer than num_heads is grouped-query attention, with a smaller "
        "KV cache.",
    )
    head_dim: int = Field(default=0, ge=0, le=1024, description="Dimension of a head; 0: hidden_size / num_heads.")
    intermediate_size: int = Field(default=704, ge=8, le=262144, description="Width of the SwiGLU MLP.")
    context_length: int = Field(
        default=256, ge=8, le=1_048_576, description="Longest sequence in tokens that the model reads."
    )
    # Worth 0.02 bits per byte in equal time (docs/LOG.md, 2026-11-27).
    qk_norm: bool = Field(
        default=True,
        description="Whether queries and keys pass an RMSNorm; with it the export is a Qwen3, else a Llama.",
    )
    # Tied costs 0.16 bits per byte in equal time, of which the copy of an induction head is a part (docs/LOG.md).
    tied_embeddings: bool = Field(
        default=False, description="Whether the output matrix (LM head) is the transposed input embedding."
    )
    # 100,000 made no difference: 1.6750 for 1.6753 bits per byte (docs/LOG.md, 2026-11-26).
    rope_theta: float = Field(default=10_000.0, gt=1, description="Base of the rotary frequencies (RoPE theta).")
    rope_scaling: RopeScaling = Field(
        default=RopeScaling(),
        description="Stretching of rotary positions to a longer context than was trained on before.",
    )

    @model_validator(mode="after")
    def _heads_share_evenly(self) -> "Architecture":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads}).")
        return self

    def shape(self, vocab_size: int) -> "ModelConfig":
        """The decoder over a vocabulary of that size, with what was left to be derived."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        scaling = self.rope_scaling
        if scaling.kind == "default":
            scaling = RopeScaling()
        elif not scaling.original_context_length:
            scaling = replace(scaling, original_context_length=int(self.context_length / scaling.factor))
        derived = {"head_dim": self.head_dim or self.hidden_size // self.num_heads, "rope_scaling": scaling}
        return ModelConfig(vocab_size=vocab_size, **(given | derived))


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ModelConfig(Architecture):
    """The shape of a decoder: an architecture with a vocabulary, in which nothing is left to be derived."""

    vocab_size: int = Field(ge=1, description="Number of token ids.")
    head_dim: int = Field(ge=1, le=1024, description="Dimension of a head.")
    rms_norm_eps: float = Field(default=1e-6, ge=0, description="Term added to the mean square in each RMSNorm.")

    @model_validator(mode="after")
    def _is_complete(self) -> "ModelConfig":
        scaling = self.rope_scaling
        if scaling.kind in ("llama3", "yarn", "dynamic") and not scaling.original_context_length:
            raise ValueError(
                f"RoPE scaling '{scaling.kind}' needs original_context_length (the length trained on before scaling), "
                f"got {scaling.original_context_length}."
            )
        if scaling.kind == "dynamic" and scaling.original_context_length != self.context_length:
            raise ValueError(
                f"Dynamic RoPE scaling starts beyond context_length ({self.context_length}), but its "
                f"original_context_length is {scaling.original_context_length}: the two must be equal."
            )
        if self.head_dim % 2:  # pairs of dimensions are rotated
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}.")
        return self
