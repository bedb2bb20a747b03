"""Quantize a whole model matrix after matrix, each from what reaches it through those already quantized."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.kernels.silu import silu
from model.network.attention import attention
from model.network.rope import Rotation, rotation
from model.network.transformer import Block, Transformer
from model.quantization.formats import DEFAULT, Format, QuantizedWeight
from model.quantization.gptq import quantize_gptq
from model.quantization.packed import replace_weights

ROWS_AT_ONCE = 16  # calibration rows that go through a layer together


def layer_format(weight: Tensor, wanted: Format) -> Format:
    """The format asked for where its blocks divide the inputs, otherwise the default."""
    return DEFAULT if weight.shape[1] % wanted.inputs_multiple else wanted


@torch.no_grad()
def quantize_to_nearest(model: Transformer, weight_format: Format) -> None:
    """Replace all matrices by packed ones, each rounded on its own; embedding and head in the default format."""
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
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
    config = model.config
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    turn = rotation(positions, config.head_dim, config.rope_theta, config.rope_scaling, torch.float32)
    replace_weights(model, _ends(model))
    states = [model.model.embed_tokens(rows).float() for rows in torch.split(input_ids, ROWS_AT_ONCE)]
    for index, layer in enumerate(model.model.layers):
        assert isinstance(layer, Block)
        quantize = _LayerQuantizer(model, f"model.layers.{index}.", weight_format, damping)
        states = _quantize_layer(layer, states, turn, quantize)
        layer_done()


@dataclass(frozen=True)
class _LayerQuantizer:
    """Replaces matrices of one layer by packed ones."""

    model: Transformer
    prefix: str
    weight_format: Format
    damping: float

    def __call__(self, names: tuple[str, ...], inputs: list[Tensor]) -> None:
        """Quantize the matrices `names`, all of which read `inputs`: (rows, seq, columns) each."""
        hessian = sum_of_outer_products(inputs)
        weights: dict[str, QuantizedWeight] = {}
        for name in names:
            matrix = self.model.get_submodule(self.prefix + name).weight
            assert isinstance(matrix, Tensor)
            chosen = layer_format(matrix, self.weight_format)
            weights[self.prefix + name] = quantize_gptq(matrix, hessian, chosen, self.damping)
        replace_weights(self.model, weights)


def sum_of_outer_products(inputs: list[Tensor]) -> Tensor:
    """The Hessian of a matrix's squared output error, up to a factor: sum of x xᵀ, (columns, columns)."""
    flat = [x.flatten(0, -2) for x in inputs]
    total = flat[0].T @ flat[0]
    for x in flat[1:]:
        total += x.T @ x
    return total


def _quantize_layer(layer: Block, states: list[Tensor], turn: Rotation, quantize: _LayerQuantizer) -> list[Tensor]:
    """Walk through a layer once: each matrix is quantized just before it is used, and used as quantized from there."""
    attn, mlp = layer.self_attn, layer.mlp
    normed = [layer.input_layernorm(x) for x in states]
    quantize(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), normed)
    mixed = [attention(*attn._heads(x, turn)).transpose(1, 2).flatten(2) for x in normed]
    quantize(("self_attn.o_proj",), mixed)
    states = [x + attn.o_proj(inner) for x, inner in zip(states, mixed)]
    normed = [layer.post_attention_layernorm(x) for x in states]
    quantize(("mlp.gate_proj", "mlp.up_proj"), normed)
    inner = [silu(mlp.gate_proj(x)) * mlp.up_proj(x) for x in normed]
    quantize(("mlp.down_proj",), inner)
    return [x + mlp.down_proj(y) for x, y in zip(states, inner)]


def _ends(model: Transformer) -> dict[str, QuantizedWeight]:
    """Embedding and head in INT8, which costs nothing measurable; in NVFP4 they cost as much as all the rest."""
    names = ["model.embed_tokens"] + ([] if model.config.tied_embeddings else ["lm_head"])
    found = {}
    for name in names:
        matrix = model.get_submodule(name).weight
        assert isinstance(matrix, Tensor)
        found[name] = DEFAULT.nearest(matrix)
    return found
