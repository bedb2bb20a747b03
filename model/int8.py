"""Training whose matrix products are of INT8 with exact int32 sums: on a CPU with VNNI at twice the rate of bf16.

Every operand gets its scales anew at each use, one for each row of what is summed over: activations by token and
weights by output in x Wᵀ, gradients by token and weights by input in g W. In gᵀ x, which sums over tokens, the
gradient's scales go into x before that gets one scale a column. So no scale stands inside a sum, and integers add up
exactly, in any order and number of threads. Master weights stay fp32, all else runs as in bf16. The idea is that of
SwitchBack (arXiv:2304.13013), which leaves gᵀ x in 16 bits; here that too lost nothing (docs/LOG.md).
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import int8_kernels as kernels
from model.fused import bits, compiled_for, spread
from model.kernels import GROUP
from model.losses import Products
from model.transformer import MLP, Attention, Transformer, replace_linears

MOST_TERMS = 1 << 17  # of 127 * 127 each: 0.98 of the largest int32
CHUNK_SUMS = 1 << 20  # int32 sums held at a time: 4 MB, which a core's cache still serves
DITHER = 1 << 16  # numbers that the head's gradient is rounded with, of which each row takes a window


def use_int8(transformer: Transformer) -> None:
    """Have all matrices multiply in INT8 while in training; names stay as they are, and evaluation runs in bf16."""
    replace_linears(transformer, Int8Linear)
    for module in transformer.modules():
        if isinstance(module, Attention | MLP):
            module.product = int8_linear
    transformer.head_products = Int8Products


class Int8Linear(nn.Module):
    """`x @ weightᵀ` in INT8 while in training; takes over the weight of a linear layer without bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        assert linear.bias is None
        self.in_features: int = linear.in_features
        self.out_features: int = linear.out_features
        self.weight: nn.Parameter = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        return int8_linear(x, self.weight) if self.training else F.linear(x, self.weight)


def int8_linear(x: Tensor, *weights: Tensor) -> Tensor:
    """x times several matrices side by side in INT8: (..., in) -> (..., sum of the outputs), bf16."""
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _Int8Linear.apply(rows, *weights)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *weights: Tensor) -> Tensor:
        ctx.sizes, ctx.dtypes = [len(weight) for weight in weights], (rows.dtype, weights[0].dtype)
        x = rows.to(torch.bfloat16)
        joint = torch.empty(sum(ctx.sizes), x.shape[1], dtype=x.dtype, device=x.device)
        for part, weight in zip(torch.split(joint, ctx.sizes), weights):
            part.copy_(weight)
        ctx.save_for_backward(x, joint)
        by_output, scales = quantize_rows(joint)
        return scaled_product(*quantize_rows(x), by_output.T, scales)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, joint = ctx.saved_tensors
        g, scales = quantize_rows(grad.to(torch.bfloat16).contiguous())
        d_rows = scaled_product(g, scales, *quantize_columns(joint))
        d_joint = torch.zeros(joint.shape, device=joint.device)
        add_product(d_joint, g.T, *quantize_columns(x, scales))
        d_weights = (part.to(ctx.dtypes[1]) for part in torch.split(d_joint, ctx.sizes))
        return (d_rows.to(ctx.dtypes[0]), *d_weights)


class Int8Products(Products):
    """Those of a head in INT8.

    The gradient of a logit is its probability, less 1 at the label. Beside that 1, or beside the likeliest token, most
    are far below 1/127: so the label's part is subtracted by itself, and the probabilities are rounded up or down by
    chance, right on average. Rounded to the nearest a run stood 0.03 bits per byte higher (docs/LOG.md).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        own = weight.clone()  # numpy pins the memory it looks at, and FSDP2 frees that of its weights
        self._by_token, self._scales = quantize_rows(own)
        self._columns = quantize_columns(own)

    def logits(self, hidden: Tensor) -> Tensor:
        return scaled_product(*quantize_rows(hidden), self._by_token.T, self._scales)

    def add_gradients(
        self,
        logits: Tensor,
        labels: Tensor,
        norms: Tensor,
        shrink: Tensor,
        hidden: Tensor,
        d_hidden: Tensor | None,
        d_weight: Tensor | None,
    ) -> None:
        d, scales = quantize_softmax(logits, norms, shrink)
        if d_hidden is not None:
            d_hidden.copy_(scaled_product(d, scales, *self._columns))
            d_hidden -= self.weight[labels]
        if d_weight is not None:
            add_product(d_weight, d.T, *quantize_columns(hidden, scales))
            subtract_rows(d_weight, labels, hidden)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (rows, columns), bf16 -> (int8 values, fp32 scales (rows,)) with x ≈ values * scales."""
    values, scales = _empty_like(x), torch.empty(len(x), device=x.device)
    if compiled_for(x):
        spread(kernels.quantize_rows, len(x), bits(x), values.numpy(), scales.numpy())
        return values, scales
    tops = x.float().abs().amax(1).clamp(min=float(kernels.SMALLEST))
    return _rounded(x.float() * (127 / tops)[:, None]), tops / 127


def quantize_columns(x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same with a scale for each column: factors * x ≈ values * scales, factors: (rows,), default 1."""
    factors = torch.ones(len(x), device=x.device) if factors is None else factors
    if not compiled_for(x):
        wide = x.float() * factors[:, None]
        tops = wide.abs().amax(0).clamp(min=float(kernels.SMALLEST))
        return _rounded(wide * (127 / tops)), tops / 127
    groups = -(-len(x) // GROUP)
    peaks = torch.zeros(groups, x.shape[1], dtype=torch.int32)
    spread(kernels.column_peaks, groups, bits(x), factors.numpy(), peaks.numpy(), smallest=1)
    tops = peaks.amax(0).view(torch.float32).clamp(min=float(kernels.SMALLEST))
    values = _empty_like(x)
    spread(kernels.quantize_columns, len(x), bits(x), factors.numpy(), (127 / tops).numpy(), values.numpy())
    return values, tops / 127


def quantize_softmax(logits: Tensor, norms: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """factors * softmax by row, unbiased: (int8 values (rows, vocab), scales (rows,)); norms: log sum exp (rows,).

    What a value is rounded by depends on its place alone, so that the same step rounds alike when it is made again.
    """
    values, scales = _empty_like(logits), torch.empty_like(norms)
    dither = _dither(max(DITHER, 2 * logits.shape[1]))
    if compiled_for(logits):
        rows = bits(logits), norms.numpy(), factors.contiguous().numpy(), dither
        spread(kernels.quantize_softmax, len(logits), *rows, values.numpy(), scales.numpy(), smallest=16)
        return values, scales
    tops = logits.amax(1).float()
    starts = torch.arange(len(logits)) * 7919 % (len(dither) - logits.shape[1] + 1)
    chances = torch.from_numpy(dither)[starts[:, None] + torch.arange(logits.shape[1])].to(logits.device)
    likelihoods = float(kernels.DITHERED) * (logits.float() - tops[:, None]).exp()
    scales = factors * (tops - norms).exp() / float(kernels.DITHERED)
    return (likelihoods + chances).floor().to(torch.int8), scales


def scaled_product(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> Tensor:
    """a * a_scales by row times b * b_scales by column: (m, k) int8, (k, n) int8 -> (m, n) bf16."""
    out = torch.empty(len(a), b.shape[1], dtype=torch.bfloat16, device=a.device)
    rows = max(64, CHUNK_SUMS // b.shape[1])
    for start in range(0, len(a), rows):
        part = slice(start, start + rows)
        sums = _product(a[part], b)
        if compiled_for(out):
            scales = a_scales[part].numpy(), b_scales.numpy()
            spread(kernels.scale_sums, len(sums), sums.numpy(), *scales, bits(out[part]))
        else:
            out[part] = sums.float() * a_scales[part, None] * b_scales
    return out


def add_product(total: Tensor, a: Tensor, b: Tensor, b_scales: Tensor) -> None:
    """total += a times b * b_scales by column: (m, k) int8, (k, n) int8, (m, n) fp32."""
    sums = _product(a, b)
    if compiled_for(torch.empty(0, dtype=torch.bfloat16, device=a.device)):
        spread(kernels.add_scaled_sums, len(sums), sums.numpy(), b_scales.numpy(), total.numpy())
    else:
        total += sums.float() * b_scales


def subtract_rows(total: Tensor, indices: Tensor, rows: Tensor) -> None:
    """total[indices[i]] -= rows[i]."""
    if compiled_for(rows):
        kernels.subtract_rows(bits(indices), bits(rows), total.numpy())
    else:
        total.index_add_(0, indices, rows.float(), alpha=-1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products of integers: int32, or fp32 where there are so many terms that int32 could overflow."""
    if len(b) <= MOST_TERMS:
        return _sums(a, b)
    parts = torch.split(a, MOST_TERMS, dim=1), torch.split(b, MOST_TERMS)
    return torch.stack([_sums(*part).float() for part in zip(*parts)]).sum(0)


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """Without VNNI exact below 2^24, and rounded as fp32 is beyond that."""
    if a.device.type == "cpu" and has_vnni():
        return torch._int_mm(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return (a.float() @ b.float()).to(torch.int32)


@lru_cache(maxsize=1)
def has_vnni() -> bool:
    """Whether the CPU multiplies INT8 fast; without, torch's own product is a plain loop, or overflows in 16 bits."""
    return torch.cpu._is_vnni_supported()


def _rounded(x: Tensor) -> Tensor:
    return (x + 0.5).floor().to(torch.int8)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=torch.int8, device=x.device)


@lru_cache(maxsize=2)
def _dither(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random(count, dtype=np.float32)
