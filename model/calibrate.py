"""Quantize a whole model, layer after layer, each from what reaches it through the layers already quantized."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model.gptq import quantize_gptq
from model.packed import replace_weights
from model.quant import NVFP4_MULTIPLE, QuantizedWeight, WeightFormat, quantize_nearest
from model.rope import Rotation, rotation
from model.transformer import Block, Transformer

ROWS_AT_ONCE = 16  # calibration rows that go through a layer together


def layer_format(weight: Tensor, weight_format: WeightFormat) -> WeightFormat:
    """NVFP4 only where its blocks divide the inputs, otherwise INT8."""
    return "int8" if weight.shape[1] % NVFP4_MULTIPLE else weight_format


@torch.no_grad()
def quantize_to_nearest(model: Transformer, weight_format: WeightFormat) -> None:
    """Replace all matrices by packed ones, each rounded on its own; embedding and head in INT8."""
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            weights[name] = quantize_nearest(module.weight, layer_format(module.weight, weight_format))
    replace_weights(model, weights | _ends(model))


@torch.no_grad()
def quantize_calibrated(
    model: Transformer,
    weight_format: WeightFormat,
    input_ids: Tensor,
    damping: float,
    layer_done: Callable[[], object] = lambda: None,
) -> None:
    """Replace all matrices by packed ones, those of the layers by GPTQ; embedding and head to nearest in INT8.

    input_ids: (rows, seq) of calibration text. `layer_done` is called after each layer.
    """
    config = model.config
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    turn = rotation(positions, config.head_dim, config.rope_theta, config.rope_scaling, torch.float32)
    replace_weights(model, _ends(model))
    states = [model.model.embed_tokens(rows).float() for rows in input_ids.split(ROWS_AT_ONCE)]
    for index, layer in enumerate(model.model.layers):
        assert isinstance(layer, Block)
        prefix = f"model.layers.{index}."
        # Matrices that read the same input share its Hessian; each group sees the groups before it quantized.
        for group in _INPUT_GROUPS:
            hessian = _input_hessian(layer, group[0], states, turn)
            weights: dict[str, QuantizedWeight] = {}
            for name in group:
                matrix = layer.get_submodule(name).weight
                assert isinstance(matrix, Tensor)
                weights[prefix + name] = quantize_gptq(matrix, hessian, layer_format(matrix, weight_format), damping)
            replace_weights(model, weights)
        states = [_through(layer, state, turn) for state in states]
        layer_done()


_INPUT_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def _ends(model: Transformer) -> dict[str, QuantizedWeight]:
    """Embedding and head in INT8, which costs nothing measurable; in NVFP4 they cost as much as all the rest."""
    names = ["model.embed_tokens"] + ([] if model.config.tied_embeddings else ["lm_head"])
    found = {}
    for name in names:
        matrix = model.get_submodule(name).weight
        assert isinstance(matrix, Tensor)
        found[name] = quantize_nearest(matrix, "int8")
    return found


def _through(layer: Block, state: Tensor, turn: Rotation) -> Tensor:
    x, branch = layer(state, None, turn, None)
    out: Tensor = x + branch
    return out


def _input_hessian(layer: Block, name: str, states: list[Tensor], turn: Rotation) -> Tensor:
    """Sum of x xᵀ over all inputs of one matrix: (inputs, inputs)."""
    matrix = layer.get_submodule(name)
    with _gather_inputs(matrix) as total:
        for state in states:
            _through(layer, state, turn)
    return total[0]


@contextmanager
def _gather_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    total: list[Tensor] = []

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        product = x.T @ x
        total[:] = [total[0] + product] if total else [product]

    handle = module.register_forward_pre_hook(gather)
    try:
        yield total
    finally:
        handle.remove()
