"""Projections that multiply in FP8 with dynamic per-tensor scaling: one scale, chosen anew at each use.

Activations and weights in E4M3, gradients in E5M2 (arXiv:2209.05433), sums in fp32 by the tensor cores; the master
weights stay fp32. On a CPU torch computes the same numbers, slowly, by which the tests check them.
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.projection import PlainProjection, Projection, replace_projections
from model.network.transformer import Transformer

CAPABILITY = (8, 9)  # Ada, Hopper and later
MULTIPLE = 16  # of both sizes of a product, which the tensor cores want
_SMALLEST = 1e-30  # stands for the maximum of a tensor of zeros


def check_float8(device: torch.device) -> None:
    """Refuse a device without FP8 tensor cores.

    Raises:
        ValueError: with what there is and what is needed.
    """
    needed = f"precision 'fp8' needs a CUDA device of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or later"
    if device.type != "cuda":
        raise ValueError(f"{needed} (Ada, Hopper), but training runs on a {device.type.upper()}. Use 'bf16'.")
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"{needed} (Ada, Hopper), but {name} has {found[0]}.{found[1]}. Use 'bf16'.")


def use_float8(transformer: Transformer) -> None:
    """Have all matrices of the layers multiply in FP8; embedding and head stay as they are, and so do all names.

    Raises:
        ValueError: a matrix has a size that FP8 products cannot take.
    """
    replace_projections(transformer.model, PlainProjection, lambda name, plain: Float8Projection(plain.weight))


class Float8Projection(PlainProjection):
    """Multiplies in FP8, with a bf16 result."""

    def __init__(self, weight: nn.Parameter) -> None:
        """weight: (O, I)."""
        super().__init__(weight)
        outputs, inputs = weight.shape
        if inputs % MULTIPLE or outputs % MULTIPLE:
            raise ValueError(
                f"precision 'fp8' needs widths that are multiples of {MULTIPLE}, found a matrix of "
                f"{outputs} x {inputs}. Change hidden_size, intermediate_size or the heads."
            )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        missing = -len(rows) % MULTIPLE  # rows are summed over in the gradient of the weight
        out: Tensor = _Float8Product.apply(F.pad(rows, (0, 0, 0, missing)), self.weight)  # type: ignore[no-untyped-call]
        return out[: len(rows)].view(*x.shape[:-1], len(self.weight))

    def joint(self, x: Tensor, *others: Self) -> Tensor:
        # One product of several would share one scale, and each tensor has its own.
        return Projection.joint(self, x, *others)


class _Float8Product(torch.autograd.Function):
    """rows @ weightᵀ; keeps the FP8 values for the backward pass: a quarter of the fp32 activations."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        x, x_scale = to_float8(rows, torch.float8_e4m3fn)
        w, w_scale = to_float8(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(x, x_scale, w, w_scale)
        ctx.dtypes = rows.dtype, weight.dtype
        return torch._scaled_mm(x, w.t(), x_scale, w_scale, out_dtype=torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, x_scale, w, w_scale = ctx.saved_tensors
        g, g_scale = to_float8(grad, torch.float8_e5m2)
        # The first matrix of a product lies by rows, the second by columns.
        d_rows = torch._scaled_mm(g, w.t().contiguous().t(), g_scale, w_scale, out_dtype=torch.bfloat16)
        by_column = x.t().contiguous().t()
        # In fp32, since micro-batches add up in it.
        d_weight = torch._scaled_mm(g.t().contiguous(), by_column, g_scale, x_scale, out_dtype=torch.float32)
        return d_rows.to(ctx.dtypes[0]), d_weight.to(ctx.dtypes[1])


def to_float8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x scaled so that its largest value is the largest of `dtype`, the factor that undoes this: an fp32 scalar)."""
    largest = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp(min=_SMALLEST) / largest
    # Division may end a little above `largest`, and E4M3, which has no infinity, would make a NaN of it.
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale
