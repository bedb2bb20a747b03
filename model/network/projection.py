"""One call for every matrix product of the layers, whatever the matrix is stored and multiplied in.

A layer asks its projections, never their weights: alone (`q_proj(x)`), several side by side on one input
(`joint_product`) or as a whole SwiGLU MLP (`swiglu_product`). A kind that knows nothing better gets the last two from
the first. `replace_projections` turns a model of one kind into another, as training in INT8 and FP8 and packed weights
are; names in the state dict stay those of Hugging Face.

Shapes: B batch, T positions, I inputs, O outputs of a matrix.
"""

from collections.abc import Callable
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels.autograd import joint_linear, swiglu
from model.kernels.dispatch import fuses
from model.kernels.silu import silu


class Projection(nn.Module):
    """`x @ Wᵀ` for a matrix W (O, I): what a layer asks of it. Kinds differ in how they hold W and multiply by it."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix, as it is held or as it comes out of its codes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, I) -> (B, T, O)."""
        raise NotImplementedError

    def joint(self, x: Tensor, *others: Self) -> Tensor:
        """x times this matrix and `others` of the same kind, side by side: (B, T, I) -> (B, T, sum of all O)."""
        return torch.cat([projection(x) for projection in (self, *others)], dim=-1)

    def swiglu_mlp(self, x: Tensor, up: Self, down: Self) -> Tensor:
        """`down(silu(self(x)) * up(x))` by the fused kernels, this one being the gate: (B, T, I) -> (B, T, I)."""
        product: Tensor = down(swiglu(self.joint(x, up)))
        return product

    def fuses(self, x: Tensor) -> bool:
        """Whether the layer should work on `x` with the fused kernels (model/kernels/autograd.py)."""
        return fuses(x, self.dtype)


class PlainProjection(Projection):
    """A matrix in floating point, multiplied as it is, or in autocast's dtype."""

    def __init__(self, weight: nn.Parameter) -> None:
        """weight: (O, I)."""
        super().__init__()
        self.weight = weight

    @classmethod
    def of(cls, inputs: int, outputs: int) -> Self:
        """One with the weights that torch draws for a linear layer: any, until they are initialised or loaded."""
        return cls(nn.Parameter(nn.Linear(inputs, outputs, bias=False).weight))

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def joint(self, x: Tensor, *others: Self) -> Tensor:
        return joint_linear(x, self.weight, *(other.weight for other in others))


def joint_product(x: Tensor, first: Projection, *others: Projection) -> Tensor:
    """x times several matrices side by side, in one product where they are of one kind: (B, T, sum of all O)."""
    alike = all(type(other) is type(first) for other in others)
    return first.joint(x, *others) if alike else Projection.joint(first, x, *others)


def swiglu_product(x: Tensor, gate: Projection, up: Projection, down: Projection) -> Tensor:
    """`down(silu(gate(x)) * up(x))` (arXiv:2002.05202): (B, T, I) -> (B, T, I)."""
    if not gate.fuses(x):
        # The order of transformers' MLP, so that fp32 logits are equal to the bit.
        out: Tensor = down(silu(gate(x)) * up(x))
        return out
    if type(gate) is type(up) is type(down):
        return gate.swiglu_mlp(x, up, down)
    mixed: Tensor = down(swiglu(joint_product(x, gate, up)))
    return mixed


Kind = TypeVar("Kind", bound=Projection)


def replace_projections(root: nn.Module, kind: type[Kind], make: Callable[[str, Kind], Projection]) -> None:
    """Put `make(name, projection)` in the place of every projection of this kind below `root`; names count from there.

    What is inside of a projection is its own affair and stays.
    """
    for prefix, parent in list(root.named_modules()):  # a list, since the tree changes under it
        if isinstance(parent, Projection):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                setattr(parent, name, make(f"{prefix}.{name}".removeprefix("."), child))
