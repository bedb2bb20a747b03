"""Losses that never hold all logits: the head and its loss are one function that walks through chunks of positions.

Labels are already shifted: `labels[b, t]` is the token that `hidden[b, t]` should predict; -100 is ignored (and costs
nothing: such positions never meet the head).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import autograd as fused
from model.network.shape import CHUNK_LOGITS

IGNORED = -100
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
        norms, found = fused.log_sum_exp(logits, labels)
        if d_hidden is None and d_weight is None:
            return norms, found
        d = fused.softmax_gradient(logits, labels, norms, torch.ones_like(norms), 1 + 2 * z_loss * norms)
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


def plain_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """The same by torch's own functions, with all logits in memory: the reference of the tests."""
    rows, targets = _labelled(hidden, labels)
    logits = F.linear(rows, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(logits, targets, reduction="sum") + z_loss * logits.logsumexp(-1).square().sum()
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
            norms[part], at_label = fused.log_sum_exp(h[part] @ w.T, labels[part])
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
            d = fused.softmax_gradient(h[part] @ w.T, labels[part], norms[part], -grad[part], ones)
            torch.mm(d, w, out=d_hidden[part])
            d_weight += d.T @ h[part]
        return d_hidden.to(ctx.dtypes[0]), d_weight.to(ctx.dtypes[1]), None, None


DPOLossType = Literal[
    "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "discopop", "sigmoid_norm",
]  # fmt: skip


@dataclass(frozen=True)
class PairLogProbs:
    """Summed log-probabilities of chosen and rejected answers, each (pairs,), and the answers' lengths in tokens."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


@dataclass(frozen=True)
class DPOLoss:
    """The loss to minimise (scalar) and what to report; rewards are beta * (policy - reference), each (pairs,)."""

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    reward_accuracy: Tensor
    reward_margin: Tensor


def dpo_loss(
    pairs: PairLogProbs, beta: float, loss_type: DPOLossType = "sigmoid", label_smoothing: float = 0.0
) -> DPOLoss:
    """Direct preference optimisation (arXiv:2305.18290) and its relatives, as TRL 1.16 defines them.

    `label_smoothing` is the chance that a label is flipped; only `robust` and `exo_pair` use it.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}.")
    if loss_type == "robust" and not 0 <= label_smoothing < 0.5:
        raise ValueError(f"'robust' needs label_smoothing in [0, 0.5), got {label_smoothing}.")
    if loss_type == "exo_pair" and not 0 < label_smoothing < 1:
        raise ValueError(f"'exo_pair' needs label_smoothing in (0, 1), got {label_smoothing}; TRL suggests 0.001.")
    chosen_rewards = beta * (pairs.chosen - pairs.reference_chosen)
    rejected_rewards = beta * (pairs.rejected - pairs.reference_rejected)
    losses = _pair_losses(loss_type, chosen_rewards, rejected_rewards, pairs, beta, label_smoothing)
    chosen_rewards, rejected_rewards = chosen_rewards.detach(), rejected_rewards.detach()
    return DPOLoss(
        loss=losses.mean(),
        chosen_rewards=chosen_rewards,
        rejected_rewards=rejected_rewards,
        reward_accuracy=(chosen_rewards > rejected_rewards).float().mean(),
        reward_margin=(chosen_rewards - rejected_rewards).mean(),
    )


def _pair_losses(
    loss_type: DPOLossType, chosen: Tensor, rejected: Tensor, pairs: PairLogProbs, beta: float, smoothing: float
) -> Tensor:
    """One loss for each pair from the rewards `chosen` and `rejected`; the names are TRL's."""
    margin = chosen - rejected
    good, bad = F.logsigmoid(margin), F.logsigmoid(-margin)
    if loss_type == "sigmoid":
        return -good
    if loss_type == "hinge":
        return torch.relu(1 - margin)
    if loss_type == "robust":  # arXiv:2403.00409
        return (smoothing * bad - (1 - smoothing) * good) / (1 - 2 * smoothing)
    if loss_type == "exo_pair":  # arXiv:2402.00856, eq. 16
        return good.exp() * (good - math.log1p(-smoothing)) + bad.exp() * (bad - math.log(smoothing))
    if loss_type == "nca_pair":  # arXiv:2402.05369
        return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)
    if loss_type == "bco_pair":  # arXiv:2404.04656
        return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)
    if loss_type == "sppo_hard":  # arXiv:2405.00675
        return ((chosen - 0.5) / beta) ** 2 + ((rejected + 0.5) / beta) ** 2
    if loss_type == "apo_zero":  # arXiv:2408.06266, eq. 7
        return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)
    if loss_type == "apo_down":  # the same, eq. 8
        return torch.sigmoid(chosen) + 1 - torch.sigmoid(margin)
    if loss_type == "discopop":  # arXiv:2406.08414, eq. 5, with its temperature of 0.05
        blend = torch.sigmoid(margin / 0.05)
        return -good * (1 - blend) + torch.exp(-margin) * blend
    per_token = chosen / pairs.chosen_tokens.clamp(min=1) - rejected / pairs.rejected_tokens.clamp(min=1)
    if loss_type == "ipo":  # arXiv:2310.12036, eq. 17, by the mean over tokens as its authors advise
        return (per_token / beta - 1 / (2 * beta)) ** 2
    if loss_type == "sigmoid_norm":  # length-normalised (Tülu 3, arXiv:2411.15124)
        return -F.logsigmoid(per_token)
    raise ValueError(f"Unknown DPO loss type {loss_type!r}; choose one of {', '.join(get_args(DPOLossType))}.")
