"""Training whose matrix products are of INT8 with exact int32 sums: on a CPU with VNNI at twice the rate of bf16.

Scaling is dynamic, anew at each use, with one scale for each row of what is summed over: activations by token and
weights by output in x Wᵀ, gradients by token and weights by input in g W. In gᵀ x, which sums over tokens, the
gradient's scales go into x before that gets one scale a column. Master weights stay fp32, all else runs as in bf16.
The idea is that of SwitchBack (arXiv:2304.13013), which leaves gᵀ x in 16 bits; here that too lost nothing
(docs/LOG.md).
"""

from typing import Any, Self

import torch
from torch import Tensor

from model.kernels import int8 as int8_kernels
from model.kernels.autograd import join
from model.kernels.dispatch import bits
from model.network.projection import PlainProjection, replace_projections
from model.network.transformer import Transformer
from model.training.precision.int8_head import Int8Products
from model.training.precision.int8_matrix import (
    pass_product,
    quantize_columns,
    quantize_rows,
    scaled_product,
    weight_gradient,
)

BF16 = torch.bfloat16


def use_int8(transformer: Transformer) -> None:
    """Have all matrices multiply in INT8 while in training; names stay as they are, and evaluation runs in bf16."""
    replace_projections(transformer.model, PlainProjection, lambda name, plain: Int8Projection(plain.weight))
    transformer.head_products = Int8Products


class Int8Projection(PlainProjection):
    """Multiplies in INT8 while in training, as plain otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.weight) if self.training else super().forward(x)

    def joint(self, x: Tensor, *others: Self) -> Tensor:
        if not self.training:
            return super().joint(x, *others)
        return int8_linear(x, self.weight, *(other.weight for other in others))

    def swiglu_mlp(self, x: Tensor, up: Self, down: Self) -> Tensor:
        if not self.training:
            return super().swiglu_mlp(x, up, down)
        return int8_mlp(x, self.weight, up.weight, down.weight)


def int8_linear(x: Tensor, *weights: Tensor) -> Tensor:
    """x times several matrices side by side in INT8: (..., in) -> (..., sum of the outputs), bf16."""
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _Int8Linear.apply(rows, *weights)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[1])


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *weights: Tensor) -> Tensor:
        ctx.sizes, ctx.dtypes = [len(weight) for weight in weights], (rows.dtype, weights[0].dtype)
        x, joint = rows.to(BF16).contiguous(), join(weights, BF16)
        # In bf16: the backward pass sums over other dimensions, for which codes and scales are made anew.
        ctx.save_for_backward(x, joint)
        w, scales = quantize_rows(joint)
        return scaled_product(*quantize_rows(x), w.T, scales)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, joint = ctx.saved_tensors
        g, scales = quantize_rows(grad.to(BF16).contiguous())
        d_rows = scaled_product(g, scales, *quantize_columns(joint))
        d_weights = torch.split(weight_gradient(g, scales, x).to(ctx.dtypes[1]), ctx.sizes)
        return (d_rows.to(ctx.dtypes[0]), *d_weights)


def int8_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down @ (silu(gate @ x) * up @ x) in INT8 by the kernels: (..., hidden) -> (..., hidden), bf16.

    The same bits as `int8_linear`, SwiGLU and `int8_linear`, but a row passes through all that lies between the
    products while it is in the cache.
    """
    out: Tensor = _Int8MLP.apply(x.reshape(-1, x.shape[-1]), gate, up, down)  # type: ignore[no-untyped-call]
    return out.view(x.shape)


class _Int8MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        ctx.dtypes = rows.dtype, gate.dtype
        x, first, second = rows.to(BF16).contiguous(), join((gate, up), BF16), down.to(BF16).contiguous()
        before, after = torch.empty(len(x), len(first), dtype=BF16), torch.empty(len(x), len(gate), dtype=BF16)
        values, scales = torch.empty(after.shape, dtype=torch.int8), torch.empty(len(x))
        w, w_scales = quantize_rows(first)
        between = bits(before), bits(after), values.numpy(), scales.numpy()
        pass_product(int8_kernels.swiglu_of_sums, *quantize_rows(x), w.T, w_scales, *between)
        # In bf16, as in `_Int8Linear`.
        ctx.save_for_backward(x, first, second, before, after)
        w, w_scales = quantize_rows(second)
        return scaled_product(values, scales, w.T, w_scales)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, first, second, before, after = ctx.saved_tensors
        g, g_scales = quantize_rows(grad.to(BF16).contiguous())
        values, scales = torch.empty(before.shape, dtype=torch.int8), torch.empty(len(before))
        between = bits(before), values.numpy(), scales.numpy()
        pass_product(int8_kernels.swiglu_backward_of_sums, g, g_scales, *quantize_columns(second), *between)
        d_rows = scaled_product(values, scales, *quantize_columns(first))
        d_gate, d_up = weight_gradient(values, scales, x).to(ctx.dtypes[1]).chunk(2)
        d_down = weight_gradient(g, g_scales, after).to(ctx.dtypes[1])
        return d_rows.to(ctx.dtypes[0]), d_gate, d_up, d_down
