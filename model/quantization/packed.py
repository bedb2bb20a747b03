"""A projection and an embedding over packed weights: they hold codes and scales only, and dequantise to compute.

They stand in for the plain ones inside a `Transformer`, so evaluation in large batches runs the very weights that an
artifact stores. For single tokens `model.decoding.engine` computes on the codes directly.
"""

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels.autograd import joint_linear
from model.network.projection import Projection, replace_projections
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


class PackedProjection(PackedWeight, Projection):
    """`x @ Wᵀ` by a matrix that is dequantised for each product: once a pass, however often the layer asks about it."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))

    def joint(self, x: Tensor, *others: Self) -> Tensor:
        return joint_linear(x, self.weight, *(other.weight for other in others))


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
    """Put packed weights in place of the named ones, e.g. `model.layers.0.mlp.up_proj` or `model.embed_tokens`."""
    for name, weight in weights.items():
        if isinstance(model.get_submodule(name), nn.Embedding):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, PackedEmbedding(weight))

    def packed(name: str, old: Projection) -> Projection:
        return PackedProjection(weights[name]) if name in weights else old

    replace_projections(model, Projection, packed)


def packed_layers(model: nn.Module) -> dict[str, PackedWeight]:
    """The packed layers of a model by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedWeight)}
