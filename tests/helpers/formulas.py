"""What kernels and fused losses are held to: the formulas themselves, in torch's own functions."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.attention import ATTENTION, AttentionName, attention_kernel, visible
from model.network.head import IGNORED


def plain_attention(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor | None) -> Tensor:
    """The formula itself, in at least fp32; shapes as in `attention.attention`."""
    wide = torch.promote_types(q.dtype, torch.float32)
    repeats = q.shape[1] // k.shape[1]
    k_wide, v_wide = (x.to(wide).repeat_interleave(repeats, dim=1) for x in (k, v))
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(wide) @ k_wide.transpose(-1, -2) / math.sqrt(q.shape[-1])
        mask = visible(q.shape[2], k.shape[2], document_ids, q.device)
        return (scores.masked_fill(~mask, -math.inf).softmax(-1) @ v_wide).to(q.dtype)


@contextmanager
def attention_by_formula() -> Iterator[None]:
    """Have models attend by `plain_attention` inside the `with` block."""
    ATTENTION["plain"] = plain_attention
    try:
        with attention_kernel(cast(AttentionName, "plain")):
            yield
    finally:
        del ATTENTION["plain"]


def plain_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """`linear_cross_entropy` by torch's own functions, with all logits in memory."""
    rows, targets = hidden[labels != IGNORED], labels[labels != IGNORED]
    logits = F.linear(rows, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(logits, targets, reduction="sum") + z_loss * logits.logsumexp(-1).square().sum()
    return total / max(targets.numel(), 1) if reduction == "mean" else total
