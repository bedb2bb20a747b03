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
from torch import Tensor

from model import int8_kernels as kernels
from model.fused import bits, has_kernels, join, spread
from model.kernels import GROUP
from model.losses import Products
from model.transformer import MLP, Attention, LinearInPlace, Transformer, replace_linears

MOST_TERMS = 1 << 17  # of 127 * 127 each: 0.98 of the largest int32
CHUNK_SUMS = 1 << 23  # int32 sums held at a time, 32 MB: for each chunk the product packs its second operand anew
DITHER = 1 << 16  # numbers that the head's gradient is rounded with, of which each row takes a window


def use_int8(transformer: Transformer) -> None:
    """Have all matrices multiply in INT8 while in training; names stay as they are, and evaluation runs in bf16."""
    replace_linears(transformer, Int8Linear)
    for module in transformer.modules():
        if isinstance(module, Attention | MLP):
            module.product = int8_linear
    transformer.head_products = Int8Products


class Int8Linear(LinearInPlace):
    """`x @ weightᵀ` in INT8 while in training."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        return int8_linear(x, self.weight) if self.training else F.linear(x, self.weight)


def int8_linear(x: Tensor, *weights: Tensor) -> Tensor:
    """x times several matrices side by side in INT8: (..., in) -> (..., sum of the outputs), bf16."""
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _Int8Linear.apply(rows, *weights)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[1])


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *weights: Tensor) -> Tensor:
        ctx.sizes, ctx.dtypes = [len(weight) for weight in weights], (rows.dtype, weights[0].dtype)
        x = rows.to(torch.bfloat16).contiguous()
        joint = join(weights, x.dtype)
        ctx.save_for_backward(x, joint)
        w, scales = quantize_rows(joint)
        return scaled_product(*quantize_rows(x), w.T, scales)

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

    The gradient of a logit is its probability, less 1 at the label. That one is far larger than most, and near a
    probability of 1 a small difference: so it is left out of the INT8 row and subtracted by itself in fp32. All other
    probabilities are rounded up or down by chance, right on average: of those below 1/254 of the likeliest, rounding
    to the nearest would leave nothing, which cost 0.03 bits per byte (docs/LOG.md).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        # numpy pins the memory that it looks at, and FSDP2 frees that of its weights.
        own = weight.clone(memory_format=torch.contiguous_format)
        self._rows, self._row_scales = quantize_rows(own)
        self._columns = quantize_columns(own)

    def logits(self, hidden: Tensor) -> Tensor:
        return scaled_product(*quantize_rows(hidden.contiguous()), self._rows.T, self._row_scales)

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
        d, scales, missing = quantize_softmax(logits, labels, norms, shrink)
        if d_hidden is not None:
            d_hidden.copy_(scaled_product(d, scales, *self._columns) - missing[:, None] * self.weight[labels])
        if d_weight is not None:
            add_product(d_weight, d.T, *quantize_columns(hidden.contiguous(), scales))
            subtract_rows(d_weight, labels, missing, hidden.contiguous())


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (rows, columns), bf16 -> (int8 values, fp32 scales (rows,)) with x ≈ values * scales."""
    values, scales = _empty_like(x), torch.empty(len(x), device=x.device)
    if has_kernels(x.device):
        spread(kernels.quantize_rows, len(x), bits(x), values.numpy(), scales.numpy())
        return values, scales
    tops = x.float().abs().amax(1).clamp(min=float(kernels.SMALLEST))
    return _rounded(x.float() * (127 / tops)[:, None]), tops / 127


def quantize_columns(x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same with a scale for each column: factors * x ≈ values * scales, factors: (rows,), default 1."""
    factors = torch.ones(len(x), device=x.device) if factors is None else factors
    if not has_kernels(x.device):
        wide = x.float() * factors[:, None]
        tops = F.pad(wide.abs(), (0, 0, 0, 1)).amax(0).clamp(min=float(kernels.SMALLEST))
        return _rounded(wide * (127 / tops)), tops / 127
    groups = -(-len(x) // GROUP)
    peaks = torch.zeros(max(1, groups), x.shape[1], dtype=torch.int32)
    spread(kernels.column_peaks, groups, bits(x), factors.numpy(), peaks.numpy(), smallest=1)
    tops = peaks.amax(0).view(torch.float32).clamp(min=float(kernels.SMALLEST))
    values = _empty_like(x)
    spread(kernels.quantize_columns, len(x), bits(x), factors.numpy(), (127 / tops).numpy(), values.numpy())
    return values, tops / 127


def quantize_softmax(logits: Tensor, labels: Tensor, norms: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """factors * softmax by row, unbiased and 0 at the label: (int8 values (rows, vocab), scales (rows,), missing
    (rows,)) where `missing` is 1 - factors * softmax at the label. norms: log sum exp (rows,). Overwrites the logits.
    """
    values, scales, missing = _empty_like(logits), torch.empty_like(norms), torch.empty_like(norms)
    dither = _dither(max(DITHER, 2 * logits.shape[1]))
    if has_kernels(logits.device):
        rows = bits(logits), bits(labels), norms.numpy(), factors.contiguous().numpy(), dither
        found = values.numpy(), scales.numpy(), missing.numpy()
        spread(kernels.quantize_softmax, len(logits), *rows, *found, smallest=16)
        return values, scales, missing
    for part in _slices(len(logits), CHUNK_SUMS // logits.shape[1]):
        rows_of = logits[part], labels[part, None], norms[part, None], factors[part, None]
        values[part], scales[part], missing[part] = _plain_quantize_softmax(*rows_of, torch.from_numpy(dither))
    return values, scales, missing


def _plain_quantize_softmax(
    logits: Tensor, labels: Tensor, norms: Tensor, factors: Tensor, dither: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in torch; all but the logits are columns."""
    count, width = logits.shape
    wide = logits.float()
    missing = 1 - factors * (wide.gather(1, labels) - norms).exp()
    wide.scatter_(1, labels, torch.finfo(torch.bfloat16).min)
    tops = wide.amax(1, keepdim=True)
    starts = (torch.arange(count)[:, None] * 7919 + norms.abs().view(torch.int32).cpu()) % (len(dither) - width + 1)
    chances = dither[starts + torch.arange(width)].to(logits.device)
    values = (float(kernels.DITHERED) * (wide - tops).exp() + chances).floor().scatter_(1, labels, 0)
    scales = factors * (tops - norms).exp() / float(kernels.DITHERED)
    return values.to(torch.int8), scales[:, 0], missing[:, 0]


def scaled_product(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> Tensor:
    """a * a_scales by row times b * b_scales by column: (m, k) int8, (k, n) int8 -> (m, n) bf16."""
    out = torch.empty(len(a), b.shape[1], dtype=torch.bfloat16, device=a.device)
    for part in _slices(len(a), CHUNK_SUMS // b.shape[1]):
        sums = _product(a[part], b)
        if has_kernels(a.device):
            scales = a_scales[part].numpy(), b_scales.numpy()
            spread(kernels.scale_sums, len(sums), sums.numpy(), *scales, bits(out[part]))
        else:
            out[part] = sums.float() * a_scales[part, None] * b_scales
    return out


def add_product(total: Tensor, a: Tensor, b: Tensor, b_scales: Tensor) -> None:
    """In place: total += a times b * b_scales by column: (m, k) int8, (k, n) int8, (m, n) fp32."""
    sums = _product(a, b)
    if has_kernels(a.device):
        spread(kernels.add_scaled_sums, len(sums), sums.numpy(), b_scales.numpy(), total.numpy())
    else:
        total += sums.float() * b_scales


def subtract_rows(total: Tensor, indices: Tensor, factors: Tensor, rows: Tensor) -> None:
    """In place, one after the other: total[indices[i]] -= factors[i] * rows[i]."""
    if has_kernels(rows.device):
        kernels.subtract_rows(bits(indices), factors.numpy(), bits(rows), total.numpy())
    else:
        total.index_add_(0, indices, factors[:, None] * rows.float(), alpha=-1)


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


def _slices(count: int, size: int) -> list[slice]:
    """0:count in parts of `size`, at least 64."""
    return [slice(start, start + max(64, size)) for start in range(0, count, max(64, size))]


def _rounded(x: Tensor) -> Tensor:
    return (x + 0.5).floor().to(torch.int8)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=torch.int8, device=x.device)


@lru_cache(maxsize=2)
def _dither(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random(count, dtype=np.float32)
