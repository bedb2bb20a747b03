"""Matrices of INT8 with fp32 scales, and products of two of them with exact int32 sums.

Integers add up exactly, in any order and number of threads, as long as no scale stands inside a sum: each operand has
one for each row of what is summed over.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.kernels import int8 as int8_kernels
from model.kernels.dispatch import bits, has_kernels, spread
from model.kernels.rows import GROUP

# Int32 sums held at a time, 32 MB: for each chunk the product packs its second operand anew, so that 2^20 took 1.25
# times as long (docs/LOG.md, 2026-11-27).
CHUNK_SUMS = 1 << 23
MOST_TERMS = 1 << 17  # of 127 * 127 each: 0.98 of the largest int32


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (rows, columns), bf16 -> (int8 values, fp32 scales (rows,)) with x ≈ values * scales."""
    values, scales = empty_like(x), torch.empty(len(x), device=x.device)
    if has_kernels(x.device):
        spread(int8_kernels.quantize_rows, len(x), bits(x), values.numpy(), scales.numpy())
        return values, scales
    tops = x.float().abs().amax(1).clamp(min=float(int8_kernels.SMALLEST))
    return _rounded(x.float() * (127 / tops)[:, None]), tops / 127


def quantize_columns(x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same with a scale for each column: factors * x ≈ values * scales, factors: (rows,), default 1."""
    factors = torch.ones(len(x), device=x.device) if factors is None else factors
    if not has_kernels(x.device):
        wide = x.float() * factors[:, None]
        # A row of zeros more, since there is no maximum of none.
        tops = F.pad(wide.abs(), (0, 0, 0, 1)).amax(0).clamp(min=float(int8_kernels.SMALLEST))
        return _rounded(wide * (127 / tops)), tops / 127
    groups = -(-len(x) // GROUP)
    peaks = torch.zeros(max(1, groups), x.shape[1], dtype=torch.int32)
    spread(int8_kernels.column_peaks, groups, bits(x), factors.numpy(), peaks.numpy(), smallest=1)
    tops = peaks.amax(0).view(torch.float32).clamp(min=float(int8_kernels.SMALLEST))
    values = empty_like(x)
    spread(int8_kernels.quantize_columns, len(x), bits(x), factors.numpy(), (127 / tops).numpy(), values.numpy())
    return values, tops / 127


def scaled_product(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, out: Tensor | None = None) -> Tensor:
    """a * a_scales by row times b * b_scales by column: (m, k) int8, (k, n) int8 -> (m, n) bf16."""
    out = torch.empty(len(a), b.shape[1], dtype=torch.bfloat16, device=a.device) if out is None else out
    if has_kernels(a.device):
        pass_product(int8_kernels.scale_sums, a, a_scales, b, b_scales, bits(out))
        return out
    for part in slices(len(a), CHUNK_SUMS // b.shape[1]):
        out[part] = product(a[part], b).float() * a_scales[part, None] * b_scales
    return out


def pass_product(
    kernel: Callable[..., None], a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *outputs: NDArray[Any]
) -> None:
    """kernel(sums, a_scales, b_scales, *outputs, start, stop) with the sums of a times b, a part of the rows at a time.

    Rows of all but b_scales belong together.
    """
    for part in slices(len(a), CHUNK_SUMS // b.shape[1]):
        sums = product(a[part], b)
        scales = a_scales[part].numpy(), b_scales.numpy()
        spread(kernel, len(sums), sums.numpy(), *scales, *(output[part] for output in outputs))


def weight_gradient(g: Tensor, g_scales: Tensor, x: Tensor) -> Tensor:
    """(g * g_scales by row)ᵀ x in INT8: (rows, m) int8, (rows, n) bf16 -> (m, n) fp32.

    It sums over rows, so their scales go into x before that gets one scale a column.
    """
    values, scales = quantize_columns(x, g_scales)
    sums = product(g.T, values)  # an operand may lie transposed at no cost (docs/LOG.md, 2026-11-27)
    if not has_kernels(x.device):
        return sums * scales
    out = torch.empty(sums.shape)
    spread(int8_kernels.scale_columns, len(sums), sums.numpy(), scales.numpy(), out.numpy())
    return out


def add_transposed_product(total: Tensor, a: Tensor, a_scales: Tensor, b: Tensor) -> None:
    """In place: total += (a * a_scales by row times b)ᵀ: (m, k) int8, (k, n) int8, (n, m) fp32.

    Where b has the more columns a fifth faster than bᵀ times aᵀ, for which it would have to be turned.
    """
    sums = product(a, b)
    if has_kernels(a.device):
        tiles = -(-sums.shape[1] // int8_kernels.TILE)
        # Four tiles are the 64 columns that are worth a thread.
        spread(int8_kernels.add_scaled_columns, tiles, sums.numpy(), a_scales.numpy(), total.numpy(), smallest=4)
    else:
        total += (sums * a_scales[:, None]).T


def product(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products of integers: int32, or fp32 where there are so many terms that int32 could overflow."""
    if len(b) <= MOST_TERMS:
        return _sums(a, b)
    parts = torch.split(a, MOST_TERMS, dim=1), torch.split(b, MOST_TERMS)
    return torch.stack([_sums(*part).float() for part in zip(*parts)]).sum(0)


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """Without VNNI exact below 2^24, and rounded as fp32 is beyond that."""
    if a.device.type == "cpu" and has_vnni():
        return torch._int_mm(a, b)
    with torch.autocast(a.device.type, enabled=False):  # bf16 products would not be exact
        return (a.float() @ b.float()).to(torch.int32)


@lru_cache(maxsize=1)
def has_vnni() -> bool:
    """Whether the CPU multiplies INT8 fast; without, torch's own product is a plain loop, or overflows in 16 bits."""
    return torch.cpu._is_vnni_supported()


def slices(count: int, size: int) -> list[slice]:
    """0:count in parts of `size`, at least 64."""
    return [slice(start, start + max(64, size)) for start in range(0, count, max(64, size))]


def _rounded(x: Tensor) -> Tensor:
    return (x + 0.5).floor().to(torch.int8)  # halves up as in the kernel; torch.round takes them to even


def empty_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=torch.int8, device=x.device)
