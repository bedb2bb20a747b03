"""Layers over packed weights: they hold codes and scales only, and dequantise while they compute.

They stand in for `nn.Linear` and `nn.Embedding` inside a `Transformer`, so evaluation in large batches runs the very
weights that an artifact stores. For single tokens `model.decoding.engine` computes on the codes directly.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.transformer import Transformer
from model.quantization.formats import (
    Int8Weight,
    NVFP4Weight,
    QuantizedWeight,
    dequantize,
    pack_nibbles,
    unpack_nibbles,
)


class PackedWeight(nn.Module):
    """A quantized matrix (rows, columns) as buffers, in the layout of the file: nibbles packed, no fp32 copy."""

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.global_scale = weight.global_scale if isinstance(weight, NVFP4Weight) else 1.0
        is_int8 = isinstance(weight, Int8Weight)
        self.register_buffer("codes", weight.codes if is_int8 else pack_nibbles(weight.codes))
        self.register_buffer("scales", weight.scales if isinstance(weight, Int8Weight) else weight.scale_bytes)

    @property
    def quantized(self) -> QuantizedWeight:
        """The matrix as codes and scales, unpacked."""
        if self.codes.dtype == torch.int8:
            return Int8Weight(self.codes, self.scales)
        return NVFP4Weight(unpack_nibbles(self.codes), self.scales, self.global_scale)

    @property
    def weight(self) -> Tensor:
        """The matrix in fp32 (rows, columns), computed anew each time."""
        return dequantize(self.quantized)


class PackedLinear(PackedWeight):
    """`x @ weightᵀ`: (..., columns) -> (..., rows)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class PackedEmbedding(PackedWeight):
    """Rows of the matrix by id: integers (...) -> (..., columns)."""

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        if self.codes.dtype == torch.int8:
            rows = Int8Weight(self.codes[flat], self.scales[flat])
            return dequantize(rows).view(*ids.shape, -1)
        picked = NVFP4Weight(unpack_nibbles(self.codes[flat]), self.scales[flat], self.global_scale)
        return dequantize(picked).view(*ids.shape, -1)


def replace_weights(model: Transformer, weights: Mapping[str, QuantizedWeight]) -> None:
    """Put packed layers in place of the named ones, e.g. `model.layers.0.mlp.up_proj` or `model.embed_tokens`."""
    for name, weight in weights.items():
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        old = parent.get_submodule(child)
        packed = PackedEmbedding(weight) if isinstance(old, nn.Embedding) else PackedLinear(weight)
        setattr(parent, child, packed)


def packed_layers(model: nn.Module) -> dict[str, PackedWeight]:
    """The packed layers of a model by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedWeight)}
