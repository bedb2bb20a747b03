"""A Llama/Qwen3-style decoder whose modules are named, and whose sums are ordered, as in Hugging Face transformers.

So a checkpoint needs no renaming, and in fp32 its logits equal those of `LlamaForCausalLM` (or, with QK-norm,
`Qwen3ForCausalLM`). The same module trains in bf16 under `torch.autocast` with fp32 master weights.

Shapes: B batch, T positions, C the residual stream (hidden_size), H heads, K heads of keys and values, D head_dim.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.kernels.autograd import add_rms_norm, split_heads
from model.kernels.dispatch import fuses
from model.network.attention import attention, document_mask
from model.network.head import Products
from model.network.induction import plant_induction_head
from model.network.past import Past
from model.network.projection import PlainProjection, Projection, joint_product, swiglu_product
from model.network.rope import Rotation, apply_rope, rotation
from model.network.shape import AttentionStart, ModelConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["ModelConfig", "Transformer"]


class RMSNorm(nn.Module):
    """`weight * x / rms(x)` over the last dimension, computed in fp32 (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)  # transformers' order: the cast, then the weight

    def add(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x + branch, its norm); no branch counts as zero."""
        if x.dtype == torch.float32 and fuses(x, self.weight.dtype):
            return add_rms_norm(x, branch, self.weight, self.eps)
        total = x if branch is None else x + branch
        return total, self(total)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions and optional RMSNorm of queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj: Projection = PlainProjection.of(config.hidden_size, q_size)
        self.k_proj: Projection = PlainProjection.of(config.hidden_size, kv_size)
        self.v_proj: Projection = PlainProjection.of(config.hidden_size, kv_size)
        self.o_proj: Projection = PlainProjection.of(q_size, config.hidden_size)
        self.eps = config.rms_norm_eps
        if config.qk_norm:
            self.q_norm: RMSNorm | None = RMSNorm(config.head_dim, self.eps)
            self.k_norm: RMSNorm | None = RMSNorm(config.head_dim, self.eps)
        else:
            self.q_norm = self.k_norm = None

    def forward(
        self, x: Tensor, turn: Rotation, documents: "Tensor | BlockMask | None" = None, past: Past | None = None
    ) -> Tensor:
        """x: (B, T, C) -> the same shape. Given a past, x goes on from there, and becomes part of it."""
        q, k, v = self._fused_heads(x, turn) if self.q_proj.fuses(x) else self.heads(x, turn)
        if past is not None:
            k, v = past.extend(k, v)
        mixed = attention(q, k, v, documents)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def heads(self, x: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, K, T, D)."""
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        # Before the rotation, as Qwen3 has it.
        if self.q_norm and self.k_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, turn), apply_rope(k, turn)
        # Norm and rotation leave fp32 under bf16 autocast.
        return q.transpose(1, 2).to(v.dtype), k.transpose(1, 2).to(v.dtype), v.transpose(1, 2)

    def _fused_heads(self, x: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """The same in one product and one pass."""
        qkv = joint_product(x, self.q_proj, self.k_proj, self.v_proj)
        norms = (self.q_norm.weight, self.k_norm.weight) if self.q_norm and self.k_norm else None
        return split_heads(qkv, norms, turn.cos, turn.sin, self.eps, self.num_heads)


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))` (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj: Projection = PlainProjection.of(config.hidden_size, config.intermediate_size)
        self.up_proj: Projection = PlainProjection.of(config.hidden_size, config.intermediate_size)
        self.down_proj: Projection = PlainProjection.of(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> the same shape."""
        return swiglu_product(x, self.gate_proj, self.up_proj, self.down_proj)


class Block(nn.Module):
    """One pre-norm layer: attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        branch: Tensor | None,
        turn: Rotation,
        documents: "Tensor | BlockMask | None" = None,
        past: Past | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(x, branch), both (B, T, C), after this layer; before the first one there is no branch.

        The residual stream is `x + branch`, which the next norm adds up: one pass where an addition takes two. The same
        call trains, decodes (with a `past` that it extends) and calibrates.
        """
        x, normed = self.input_layernorm.add(x, branch)
        x, normed = self.post_attention_layernorm.add(x, self.self_attn(normed, turn, documents, past))
        return x, self.mlp(normed)


class Decoder(nn.Module):
    """Embedding, layers and final norm: what Hugging Face calls `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """The causal language model. `recompute_layers` trades a second forward of each layer for its activations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_layers = False
        self.head_products: type[Products] = Products  # of the head and the loss, in training
        self.model = Decoder(config)
        if not config.tied_embeddings:  # tied: one parameter under one name, as in the exported file
            self.lm_head: Projection = PlainProjection.of(config.hidden_size, config.vocab_size)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix (vocab, hidden), which is the embedding itself when tied."""
        weight = self.model.embed_tokens.weight if self.config.tied_embeddings else self.lm_head.weight
        assert isinstance(weight, Tensor)
        return weight

    def turn(self, position_ids: Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation of queries and keys at `position_ids` (B or 1, T)."""
        config = self.config
        return rotation(position_ids, config.head_dim, config.rope_theta, config.rope_scaling, dtype)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        past: Sequence[Past] | None = None,
    ) -> Tensor:
        """States after the final norm: (B, T, C).

        input_ids: (B, T). position_ids: (B, T), default 0, 1, 2, ... in each row, or on from the past. document_ids:
        (B, T) integers; a run of equal ids is a document, and a token attends only to its own. Padding is simply a
        document of its own. past: one for each layer, which is extended; without `document_ids`.
        """
        if position_ids is None:
            start = past[0].length if past else 0
            position_ids = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
        x = self.model.embed_tokens(input_ids)
        turn = self.turn(position_ids, x.dtype)
        documents = document_mask(document_ids)  # once for all layers
        branch: Tensor | None = None
        for index, layer in enumerate(self.model.layers):
            if self.recompute_layers and torch.is_grad_enabled():
                x, branch = checkpoint(layer, x, branch, turn, documents, use_reentrant=False)
            else:
                x, branch = layer(x, branch, turn, documents, past[index] if past else None)
        return self.model.norm.add(x, branch)[1]

    def forward(
        self, input_ids: Tensor, *, position_ids: Tensor | None = None, document_ids: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, vocab); for training prefer `hidden` with `head.linear_cross_entropy`."""
        return self.logits(self.hidden(input_ids, position_ids=position_ids, document_ids=document_ids))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., vocab)."""
        return F.linear(hidden, self.head_weight)

    @torch.no_grad()
    def initialize(
        self,
        seed: int,
        output_projections: Literal["zero", "depth"] = "zero",
        attention_start: AttentionStart = "random",
    ) -> None:
        """Draw all weights; each parameter from its own stream of (seed, name), so no order or sharding matters.

        Matrices have std 1 / sqrt(inputs). Output projections start at `zero` (each layer begins as the identity) or
        at std 0.02 / sqrt(2 * layers) (`depth`, GPT-2). An untied embedding has std 0.8 and meets a learning rate of
        about 0.1, which was worth 0.09 bits per byte at 5M parameters; a tied one, being also the head, has 0.02.
        Attention starts at random, or with an induction head (model/network/induction.py).
        """
        for name, parameter in self.named_parameters():
            std = self._initial_std(name, parameter, output_projections)
            if parameter.ndim == 1:
                parameter.fill_(1.0)  # only norms have one dimension
            elif std == 0.0:
                parameter.zero_()
            else:
                stream = torch.Generator().manual_seed(_stream_seed(seed, name))
                parameter.copy_(torch.randn(parameter.shape, generator=stream) * std)
        if attention_start == "induction":
            plant_induction_head(self.config, dict(self.named_parameters()), self._embedding_std)

    @property
    def _embedding_std(self) -> float:
        return 0.02 if self.config.tied_embeddings else 0.8

    def _initial_std(self, name: str, parameter: Tensor, output_projections: Literal["zero", "depth"]) -> float:
        if "embed_tokens" in name:
            return self._embedding_std
        if "lm_head" in name:
            return 0.001  # logits start near zero: the first loss is ln(vocab)
        if "o_proj" in name or "down_proj" in name:
            return 0.0 if output_projections == "zero" else 0.02 / (2 * self.config.num_layers) ** 0.5
        return float(parameter.shape[-1] ** -0.5)


def _stream_seed(seed: int, name: str) -> int:
    # Signed 64 bits are what manual_seed takes; Python's own hash differs from process to process.
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little", signed=True)
