"""The LM head and its cross-entropy fused into one function that takes chunks of positions and never holds all logits.

Labels are already shifted: `labels[b, t]` is the token that `hidden[b, t]` should predict; -100 is ignored (and costs
nothing: such positions never meet the head).
"""

from typing import Any, Literal

import torch
from torch import Tensor

from model.kernels.autograd import log_sum_exp, softmax_gradient

IGNORED = -100  # torch's and transformers' default for labels without a loss
# Logits held at a time: each chunk packs the head anew for its products, and passes over its gradient. On a CPU 2^22
# took 0.7 to 0.9 of the time of 2^20, and no less with 2^23 (docs/LOG.md, 2026-11-27); on a GPU enough to fill it.
CHUNK_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 28}
Reduction = Literal["mean", "sum"]


class Products:
    """What `linear_cross_entropy` multiplies in a chunk of positions, in the dtype of its operands."""

    def __init__(self, weight: Tensor) -> None:
        """weight: (vocab, dim)."""
        self.weight = weight

    def positions(self) -> int:
        """How many make a chunk."""
        return _positions(self.weight)

    def walk(
        self, hidden: Tensor, labels: Tensor, z_loss: float, d_hidden: Tensor | None, d_weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """log sum exp of the logits and the label's logit, each (positions,), of a chunk: hidden (positions, dim).

        The gradient of the loss by d_hidden (positions, dim) is written there, that by d_weight (vocab, dim) added.
        """
        logits = hidden @ self.weight.T
        norms, found = log_sum_exp(logits, labels)
        if d_hidden is None and d_weight is None:
            return norms, found
        # The z-loss adds its derivative to each probability: 2 * z_loss * logsumexp * softmax.
        d = softmax_gradient(logits, labels, norms, torch.ones_like(norms), 1 + 2 * z_loss * norms)
        if d_hidden is not None:
            torch.mm(d, self.weight, out=d_hidden)
        if d_weight is not None:
            d_weight += d.T @ hidden
        return norms, found


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    products: type[Products] = Products,
) -> Tensor:
    """Cross-entropy in nats of `hidden @ weightᵀ` against `labels`, as a scalar in at least fp32.

    hidden: (..., dim); weight: (vocab, dim); labels: (...). `z_loss` adds z_loss * logsumexp² to each position
    (PaLM, arXiv:2204.02311). The gradient is computed in the forward pass, chunk by chunk, so no logits are stored
    and the head's second matmul is saved (the idea of Liger, arXiv:2410.10989). Without a label the loss is 0.
    """
    rows, targets = _labelled(hidden, labels)
    dtype = _compute_dtype(hidden)
    total: Tensor = _LinearCrossEntropy.apply(rows, weight, targets, z_loss, dtype, products)  # type: ignore[no-untyped-call]
    return total / max(targets.numel(), 1) if reduction == "mean" else total


def token_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """log p(label) in nats at each position, 0 where the label is ignored: shape of `labels`, at least fp32.

    Differentiable; the backward pass recomputes the logits chunk by chunk instead of keeping them.
    """
    rows, targets = _labelled(hidden, labels)
    found: Tensor = _TokenLogProbs.apply(rows, weight, targets, _compute_dtype(hidden))  # type: ignore[no-untyped-call]
    if found.numel() == labels.numel():
        return found.view(labels.shape)
    return found.new_zeros(labels.shape).masked_scatter(labels != IGNORED, found)


def _labelled(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that have a label, flattened: (positions, dim) and (positions,)."""
    if hidden.shape[:-1] != labels.shape:
        raise ValueError(f"labels must have the shape {tuple(hidden.shape[:-1])} of hidden, got {tuple(labels.shape)}.")
    rows, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    kept = (targets != IGNORED).nonzero()[:, 0]
    # In pretraining every position has a label, and nothing is copied.
    return (rows, targets) if len(kept) == len(targets) else (rows[kept], targets[kept])


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _positions(weight: Tensor) -> int:
    return max(16, CHUNK_LOGITS[weight.device.type] // len(weight))


def _chunks(labels: Tensor, size: int) -> list[slice]:
    return [slice(start, min(start + size, len(labels))) for start in range(0, len(labels), size)]


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over positions of cross-entropy + z-loss; both gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        z_loss: float,
        dtype: torch.dtype,
        products: type[Products],
    ) -> Tensor:
        h, w = hidden.to(dtype), weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=h.device)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(h) if wants_hidden else None
        # Chunks add up in it: a bf16 sum would lose what is small beside it.
        d_weight = torch.zeros_like(w, dtype=wide) if wants_weight else None
        head = products(w)
        for part in _chunks(labels, head.positions()):
            d_part = None if d_hidden is None else d_hidden[part]
            norms, found = head.walk(h[part], labels[part], z_loss, d_part, d_weight)
            total += (norms - found + z_loss * norms.square()).sum()
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # grad is a scalar: the factor of the loss is all that the gradients still lack.
        d_hidden, d_weight = (
            None if d is None else (d * grad).to(dtype) for d, dtype in zip(ctx.saved_tensors, ctx.dtypes)
        )
        return d_hidden, d_weight, None, None, None, None


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(hidden @ weightᵀ)[label] by position."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        h, w = hidden.to(dtype), weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        found = torch.empty(len(labels), dtype=wide, device=h.device)
        norms = torch.empty_like(found)
        for part in _chunks(labels, _positions(w)):
            norms[part], at_label = log_sum_exp(h[part] @ w.T, labels[part])
            found[part] = at_label - norms[part]
        ctx.save_for_backward(h, w, labels, norms)
        ctx.dtypes = hidden.dtype, weight.dtype
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, w, labels, norms = ctx.saved_tensors
        d_hidden, d_weight = torch.empty_like(h), torch.zeros_like(w, dtype=norms.dtype)
        for part in _chunks(labels, _positions(w)):
            ones = torch.ones_like(norms[part])
            d = softmax_gradient(h[part] @ w.T, labels[part], norms[part], -grad[part], ones)
            torch.mm(d, w, out=d_hidden[part])
            d_weight += d.T @ h[part]
        return d_hidden.to(ctx.dtypes[0]), d_weight.to(ctx.dtypes[1]), None, None
