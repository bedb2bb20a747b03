"""Quantize a whole model matrix after matrix, each from what reaches it through those already quantized."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.projection import PlainProjection, Projection, replace_projections
from model.network.transformer import Transformer
from model.quantization.formats import DEFAULT, Format, QuantizedWeight
from model.quantization.gptq import quantize_gptq
from model.quantization.packed import PackedProjection, replace_weights

ROWS_AT_ONCE = 16  # calibration rows of one product; their number fixes the order of the sums, so the bytes


def layer_format(weight: Tensor, wanted: Format) -> Format:
    """The format asked for where its blocks divide the inputs, otherwise the default."""
    return DEFAULT if weight.shape[1] % wanted.inputs_multiple else wanted


@torch.no_grad()
def quantize_to_nearest(model: Transformer, weight_format: Format) -> None:
    """Replace all matrices by packed ones, each rounded on its own; embedding and head in the default format."""
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, PlainProjection) and name != "lm_head":
            weights[name] = layer_format(module.weight, weight_format).nearest(module.weight)
    replace_weights(model, weights | _ends(model))


@torch.no_grad()
def quantize_calibrated(
    model: Transformer,
    weight_format: Format,
    input_ids: Tensor,
    damping: float,
    layer_done: Callable[[], object] = lambda: None,
) -> None:
    """Replace all matrices by packed ones, those of the layers by GPTQ; embedding and head to nearest in the default.

    input_ids: (rows, seq) of calibration text. `layer_done` is called after each layer.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    replace_weights(model, _ends(model))  # first: the layers are to see what the packed embedding gives
    x: Tensor = model.model.embed_tokens(input_ids).float()
    branch: Tensor | None = None
    turn = model.turn(positions, x.dtype)
    inputs = SharedInputs()
    for layer in model.model.layers:
        replace_projections(layer, Projection, lambda _, plain: Calibrating(plain, inputs, weight_format, damping))
        # One pass quantizes every matrix: a forward for each GPTQ input took over 5 minutes, this 9.5 s (docs/LOG.md).
        x, branch = layer(x, branch, turn)
        replace_projections(layer, Calibrating, lambda _, calibrated: calibrated.packed())
        layer_done()


class SharedInputs:
    """The Hessian of the last inputs seen: projections that read the same ones (q, k and v; gate and up) share it."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._hessian = torch.empty(0)

    def hessian(self, x: Tensor) -> Tensor:
        """The sum of x xᵀ over all rows: (I, I)."""
        if self._last is not x:  # layers call those that share an input with the same tensor
            self._last, self._hessian = x, sum_of_outer_products(list(torch.split(x, ROWS_AT_ONCE)))
        return self._hessian


class Calibrating(Projection):
    """Quantizes its matrix by the first inputs that reach it, and multiplies them by it as quantized.

    So one pass through a layer quantizes it: each matrix by what comes through those before it in their packed form.
    """

    def __init__(self, plain: Projection, inputs: SharedInputs, weight_format: Format, damping: float) -> None:
        super().__init__()
        assert isinstance(plain.weight, Tensor)
        self._plain, self._inputs, self._damping = plain.weight.detach(), inputs, damping
        self._format = layer_format(plain.weight, weight_format)
        self._packed: PackedProjection | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self._plain.dtype

    def forward(self, x: Tensor) -> Tensor:
        """x: all calibration rows (rows, seq, I) at once -> (rows, seq, O)."""
        if self._packed is None:
            hessian = self._inputs.hessian(x)
            self._packed = PackedProjection(quantize_gptq(self._plain, hessian, self._format, self._damping))
        weight = self._packed.weight
        return torch.cat([F.linear(rows, weight) for rows in torch.split(x, ROWS_AT_ONCE)])

    def packed(self) -> PackedProjection:
        """What it became."""
        assert self._packed is not None, "no input has reached this projection"
        return self._packed


def sum_of_outer_products(inputs: list[Tensor]) -> Tensor:
    """The Hessian of a matrix's squared output error, up to a factor: sum of x xᵀ, (columns, columns)."""
    flat = [x.flatten(0, -2) for x in inputs]
    total = flat[0].T @ flat[0]
    for x in flat[1:]:
        total += x.T @ x
    return total


def _ends(model: Transformer) -> dict[str, QuantizedWeight]:
    """Embedding and head in INT8, which costs nothing measurable; in NVFP4 the head costs as much as all the rest."""
    names = ["model.embed_tokens"] + ([] if model.config.tied_embeddings else ["lm_head"])
    found = {}
    for name in names:
        matrix = model.get_submodule(name).weight
        assert isinstance(matrix, Tensor)
        found[name] = DEFAULT.nearest(matrix)
    return found
