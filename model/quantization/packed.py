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
from model.quantization.formats import QuantizedWeight


class PackedWeight(nn.Module):
    """A quantized matrix (rows, columns): its buffers are the tensors that its format stores, no fp32 copy."""

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.format = weight.format
        for name, tensor in weight.tensors.items():
            self.register_buffer(name, tensor)  # moves and is saved with the module, and no optimizer sees it

    @property
    def quantized(self) -> QuantizedWeight:
        """The matrix as it is stored."""
        return QuantizedWeight(self.format, {name: self.get_buffer(name) for name in self.format.stored})

    @property
    def weight(self) -> Tensor:
        """The matrix in fp32 (rows, columns), computed anew each time."""
        return self.quantized.dequantize()


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
        return self.quantized.rows(ids.reshape(-1)).dequantize().view(*ids.shape, -1)  # only those rows


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
