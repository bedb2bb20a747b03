"""Training whose matrix products are of INT8 with exact int32 sums: on a CPU with VNNI at twice the rate of bf16.

Every operand gets its scales anew at each use, one for each row of what is summed over: activations by token and
weights by output in x Wᵀ, gradients by token and weights by input in g W. In gᵀ x, which sums over tokens, the
gradient's scales go into x before that gets one scale a column. Master weights stay fp32, all else runs as in bf16.
The idea is that of SwitchBack (arXiv:2304.13013), which leaves gᵀ x in 16 bits; here that too lost nothing
(docs/LOG.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.fused import join
from model.int8_head import Int8Products
from model.int8_matrix import add_product, quantize_columns, quantize_rows, scaled_product
from model.transformer import MLP, Attention, LinearInPlace, Transformer, replace_linears


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
