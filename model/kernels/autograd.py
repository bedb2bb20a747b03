"""The elementwise parts of a layer as autograd functions over compiled kernels, for bf16 training on a CPU.

Under bf16 autocast torch makes 5-10 passes over fp32 copies for each norm, rotation and activation; these make one or
two. Everywhere else (fp32, double, a GPU, no numba) the layer computes the plain formulas in transformer.py. The loss
has kernels on a GPU too.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.kernels import rows as row_kernels
from model.kernels.dispatch import bits, compiled_for, spread

# Stand for an array that is not there: a kernel is compiled for arrays, not for None.
_NO_FLOATS = np.empty((0, 0), np.float32)
_NO_GAIN = np.empty(0, np.float32)
_NO_BITS = np.empty((0, 0), np.uint16)


def add_rms_norm(x: Tensor, branch: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + branch in fp32, its RMSNorm in bf16): both (batch, seq, hidden)."""
    total, normed = _AddRMSNorm.apply(x, branch, weight, eps)  # type: ignore[no-untyped-call]
    return total, normed


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rows = x.contiguous().view(-1, x.shape[-1])
        total = torch.empty_like(rows)
        normed = torch.empty_like(rows, dtype=torch.bfloat16)
        inverse = torch.empty(len(rows))  # kept, so that the backward pass sums no squares again
        # Before the first layer there is no branch; the kernel then only takes the norm.
        added = _NO_BITS if branch is None else bits(branch.contiguous().view(rows.shape))
        spread(
            row_kernels.add_norm,
            len(rows),
            *(bits(rows), added, bits(weight), eps, bits(total), bits(normed), bits(inverse)),
        )
        ctx.save_for_backward(total, weight, inverse)
        ctx.has_branch = branch is not None
        ctx.set_materialize_grads(False)  # after the last layer nobody reads the sum: no zeros to make and add
        return total.view(x.shape), normed.view(x.shape)

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, d_normed: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, inverse = ctx.saved_tensors
        shape = d_normed.shape
        d_x = torch.empty_like(total)
        d_branch = torch.empty_like(total, dtype=torch.bfloat16) if ctx.has_branch else None
        groups = -(-len(total) // row_kernels.GROUP)
        d_weight = torch.zeros(groups, total.shape[1])
        spread(
            row_kernels.add_norm_backward,
            groups,
            _NO_FLOATS if d_total is None else bits(d_total.contiguous().view(total.shape)),
            bits(d_normed.contiguous().view(total.shape)),
            *(bits(total), bits(weight), bits(inverse), bits(d_x)),
            _NO_BITS if d_branch is None else bits(d_branch),
            bits(d_weight),
            smallest=1,  # a group is GROUP rows already
        )
        return d_x.view(shape), None if d_branch is None else d_branch.view(shape), d_weight.sum(0), None


def joint_linear(x: Tensor, *weights: Tensor) -> Tensor:
    """x times several matrices side by side in one bf16 product: (..., sum of the outputs)."""
    out: Tensor = _JointLinear.apply(x, *weights)  # type: ignore[no-untyped-call]
    return out


def join(weights: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """A copy of several matrices (outputs, inputs) one above the other."""
    sizes = [len(weight) for weight in weights]
    joint = torch.empty(sum(sizes), weights[0].shape[1], dtype=dtype, device=weights[0].device)
    for part, weight in zip(torch.split(joint, sizes), weights):
        part.copy_(weight)  # casts as it copies; torch.cat would need each part cast before
    return joint


class _JointLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        joint = join(weights, x.dtype)
        ctx.save_for_backward(x, joint)
        ctx.sizes, ctx.dtype = [len(weight) for weight in weights], weights[0].dtype
        return x @ joint.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, joint = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])  # (tokens, outputs): one sum over all tokens of the micro-batch
        d_joint = rows.T @ x.reshape(-1, x.shape[-1])
        return (grad @ joint, *(part.to(ctx.dtype) for part in torch.split(d_joint, ctx.sizes)))


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up of rows that hold gate followed by up: (..., 2 * width) -> (..., width)."""
    out: Tensor = _SwiGLU.apply(x)  # type: ignore[no-untyped-call]
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = x.contiguous().view(-1, x.shape[-1])
        out = torch.empty(len(rows), x.shape[-1] // 2, dtype=x.dtype)
        spread(row_kernels.swiglu, len(rows), bits(rows), bits(out))
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        d_x = torch.empty_like(rows)
        d_out = grad.contiguous().view(len(rows), -1)
        spread(row_kernels.swiglu_backward, len(rows), bits(d_out), bits(rows), bits(d_x))
        return d_x.view(ctx.shape)


def split_heads(
    qkv: Tensor, norms: tuple[Tensor, Tensor] | None, cos: Tensor, sin: Tensor, eps: float, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of queries, keys and values side by side -> q, k (normed and rotated) and v, each (batch, heads, seq, dim).

    qkv: (batch, seq, (heads + 2 kv_heads) * dim), bf16. cos, sin: (batch or 1, seq, dim / 2), fp32. `norms`: the
    weights (dim,) of the norms of queries and keys.
    """
    q, k, v = _SplitHeads.apply(qkv, *(norms or (None, None)), cos, sin, eps, heads)  # type: ignore[no-untyped-call]
    return q, k, v


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        eps: float,
        heads: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, seq, columns = qkv.shape
        dim = 2 * cos.shape[-1]
        kv_heads = (columns // dim - heads) // 2
        rows = qkv.contiguous().view(batch * seq, columns)
        cos, sin = cos.view(-1, dim // 2), sin.view(-1, dim // 2)
        found = []
        for offset, count, weight in ((0, heads, q_weight), (heads, kv_heads, k_weight)):
            out = torch.empty(batch, count, seq, dim, dtype=qkv.dtype)
            gain = _NO_GAIN if weight is None else bits(weight)
            spread(
                row_kernels.rotate_heads,
                len(rows),
                *(bits(rows), offset * dim, gain, eps, bits(cos), bits(sin), bits(out)),
            )
            found.append(out)
        v = qkv[..., (heads + kv_heads) * dim :].view(batch, seq, kv_heads, dim).transpose(1, 2).contiguous()
        ctx.save_for_backward(rows, q_weight, k_weight, cos, sin)
        ctx.eps = eps
        return found[0], found[1], v

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        rows, q_weight, k_weight, cos, sin = ctx.saved_tensors
        batch, heads, seq, dim = dq.shape
        kv_heads = dk.shape[1]
        d_rows = torch.empty_like(rows)  # queries, keys and values fill every column
        d_rows.view(batch, seq, -1, dim)[:, :, heads + kv_heads :] = dv.transpose(1, 2)
        groups = -(-len(rows) // row_kernels.GROUP)
        d_weights: list[Tensor | None] = []
        for offset, weight, d in ((0, q_weight, dq), (heads, k_weight, dk)):
            d_weight = torch.zeros(groups, dim)
            gain = _NO_GAIN if weight is None else bits(weight)
            spread(
                row_kernels.rotate_heads_backward,
                groups,
                *(bits(d.contiguous()), bits(rows), offset * dim, gain, ctx.eps),
                *(bits(cos), bits(sin), bits(d_rows), bits(d_weight)),
                smallest=1,  # a group is GROUP rows already
            )
            d_weights.append(None if weight is None else d_weight.sum(0))
        return d_rows.view(batch, seq, -1), *d_weights, None, None, None, None


def log_sum_exp(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """log sum exp of each row and the label's logit, in at least fp32: (rows,) each. logits: (rows, vocab)."""
    if logits.device.type == "cuda":
        both: tuple[Tensor, Tensor] = _on_gpu(_plain_log_sum_exp)(logits, labels)
        return both
    if not compiled_for(logits):
        return _plain_log_sum_exp(logits, labels)
    norms, found = torch.empty(len(logits)), torch.empty(len(logits))
    spread(row_kernels.log_sum_exp, len(logits), bits(logits), bits(labels), bits(norms), bits(found), smallest=16)
    return norms, found


def softmax_gradient(logits: Tensor, labels: Tensor, norms: Tensor, scale: Tensor, shrink: Tensor) -> Tensor:
    """scale * (shrink * softmax(logits) - onehot(labels)) by row, overwriting the logits; the rest are (rows,)."""
    if logits.device.type == "cuda":
        gradient: Tensor = _on_gpu(_gpu_softmax_gradient)(logits, labels, norms, scale, shrink)
        return gradient
    if not compiled_for(logits):
        d = logits.to(norms.dtype).sub(norms[:, None]).exp_().mul_((scale * shrink)[:, None])
        return d.scatter_add_(1, labels[:, None], -scale[:, None]).to(logits.dtype)
    rows = (bits(logits), bits(labels), bits(norms), bits(scale.contiguous()), bits(shrink))
    spread(row_kernels.softmax_gradient, len(logits), *rows, smallest=16)
    return logits


def _plain_log_sum_exp(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.logsumexp(-1), wide.gather(1, labels[:, None])[:, 0]


def _gpu_softmax_gradient(logits: Tensor, labels: Tensor, norms: Tensor, scale: Tensor, shrink: Tensor) -> Tensor:
    """In one pass, where a scatter would take another over fp32 copies."""
    at_label = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    softmax = torch.exp(logits.to(norms.dtype) - norms[:, None])
    return (softmax * (scale * shrink)[:, None] - torch.where(at_label, scale[:, None], 0)).to(logits.dtype)


@lru_cache(maxsize=4)
def _on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled for a GPU: of a vocabulary's logits each pass in fp32 counts (65,536 x 32,768: 8.6 GB)."""
    return torch.compile(function)


def masked_softmax(scores: Tensor, scale: float, begins: Tensor, ends: Tensor, heads: int) -> Tensor:
    """softmax(scale * scores) over columns begins:ends of each row, 0 elsewhere, overwriting the scores.

    scores: (pairs, rows, keys), whose rows in memory run over (batch, heads, queries). begins, ends:
    (batch or 1, queries), int64; the range must hold at least one key.
    """
    if compiled_for(scores):
        rows = scores.view(-1, scores.shape[-1])
        spread(row_kernels.masked_softmax, len(rows), bits(rows), scale, bits(begins), bits(ends), heads)
        return scores
    keys = torch.arange(scores.shape[-1], device=scores.device)
    hidden = (keys < begins[..., None]) | (keys >= ends[..., None])
    by_query = scores.view(-1, heads, begins.shape[1], scores.shape[-1])
    return by_query.mul(scale).masked_fill_(hidden[:, None], -math.inf).softmax(-1).view(scores.shape)


def softmax_backward(d: Tensor, probabilities: Tensor, scale: float) -> Tensor:
    """scale * p * (d - sum(p * d)) by row, overwriting d: the gradient of `masked_softmax`."""
    if compiled_for(d):
        rows, p = d.view(-1, d.shape[-1]), probabilities.view(-1, d.shape[-1])
        spread(row_kernels.softmax_backward, len(rows), bits(rows), bits(p), scale)
        return d
    return (d - (d * probabilities).sum(-1, keepdim=True)).mul_(probabilities).mul_(scale)
