"""The shape of a model as plain data, free of torch, so that plans and forms can reason about it at once."""

from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["fp32", "bf16", "int8", "fp8"]
"""Arithmetic of a model; its master weights are fp32. int8: of all matrices, in training; fp8: of the layers'
matrices. All else runs in bf16."""
OptimizerName = Literal["normuon", "muon", "adamw"]
AttentionStart = Literal["induction", "random"]
RopeKind = Literal["default", "linear", "llama3", "yarn", "dynamic"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those trained on.

    `default` none; `linear` positions divided by `factor` (arXiv:2306.15595); `llama3` only long wavelengths, with a
    smooth border (Llama 3.1); `yarn` per dimension by its number of rotations, with a temperature (arXiv:2309.00071);
    `dynamic` none up to the model's own context length, and a longer base the further a text goes beyond it.
    """

    kind: RopeKind = "default"
    factor: float = 1.0
    original_context_length: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 0.0  # yarn; 0 = the paper's 0.1 ln(factor) + 1

    def __post_init__(self) -> None:
        if self.kind != "default" and self.factor < 1.0:
            raise ValueError(f"RoPE scaling '{self.kind}' needs a factor of at least 1, got {self.factor}.")
        if self.kind in ("llama3", "yarn", "dynamic") and self.original_context_length <= 0:
            raise ValueError(
                f"RoPE scaling '{self.kind}' needs original_context_length (the length trained on before scaling), "
                f"got {self.original_context_length}."
            )
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"llama3 RoPE scaling needs high_freq_factor > low_freq_factor, got {self.high_freq_factor} and "
                f"{self.low_freq_factor}."
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder. Sizes are in elements, `context_length` in tokens."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    context_length: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    qk_norm: bool = True
    tied_embeddings: bool = False
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        for name in (*sizes, "intermediate_size", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads}).")
        scaling = self.rope_scaling
        if scaling.kind == "dynamic" and scaling.original_context_length != self.context_length:
            raise ValueError(
                f"Dynamic RoPE scaling starts beyond context_length ({self.context_length}), but its "
                f"original_context_length is {scaling.original_context_length}: the two must be equal."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}.")
