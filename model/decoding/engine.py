"""The decoder for a CPU: packed weights in the order that the compiled step reads them, and a key-value cache."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.decoding.generate import check_room
from model.decoding.step import Shape, Weights, step
from model.kernels.matvec import F32Matrix, StepMatrix
from model.network.rope import attention_scale, rope_frequencies
from model.network.transformer import Block, Transformer
from model.quantization.packed import PackedWeight

Floats = NDArray[np.float32]

_FIRST_CAPACITY = 256  # positions a fresh cache holds; it doubles when full
_NO_LOGITS = np.empty(0, np.float32)


class Engine:
    """A `Transformer`, its matrices fp32 or packed, one sequence at a time and one token a step."""

    def __init__(self, model: Transformer) -> None:
        config = model.config
        self.context_length = config.context_length
        self.tokens: list[int] = []
        self.weights = _collect(model)
        self._shape = Shape(config.num_heads, config.num_kv_heads, config.head_dim, config.rms_norm_eps)
        capacity = min(_FIRST_CAPACITY, self.context_length)
        # A head's positions lie side by side, since attention walks along them.
        self._keys = np.empty((config.num_layers, config.num_kv_heads, capacity, config.head_dim), np.float32)
        self._values = np.empty_like(self._keys)
        self._vocab_size = config.vocab_size

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        del self.tokens[length:]  # the cache beyond is overwritten when its places are read anew

    def append(self, ids: Sequence[int]) -> Floats:
        """Read more tokens; the logits of the token after them: (vocab,)."""
        check_room(self, len(ids))
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise ValueError(f"Token id {token} is not in 0..{self._vocab_size - 1}, the model's vocabulary.")
        self._reserve(len(self.tokens) + len(ids))
        logits = np.empty(self._vocab_size, np.float32)
        for index, token in enumerate(ids):
            # Of a prompt only the last token's logits are read, and the head is the widest matrix of all.
            wanted = logits if index == len(ids) - 1 else _NO_LOGITS
            step(token, len(self.tokens), self.weights, self._shape, self._keys, self._values, wanted)
            self.tokens.append(token)
        return logits

    def _reserve(self, length: int) -> None:
        capacity = self._keys.shape[2]
        if length > capacity:
            grown = min(max(length, 2 * capacity), self.context_length)
            room = ((0, 0), (0, 0), (0, grown - capacity), (0, 0))
            self._keys, self._values = np.pad(self._keys, room), np.pad(self._values, room)


def _collect(model: Transformer) -> Weights:
    """The weights in the order of the compiled step."""
    config, decoder = model.config, model.model
    layers = [layer for layer in decoder.layers if isinstance(layer, Block)]
    scaling = config.rope_scaling
    angles = torch.outer(
        torch.arange(config.context_length).float(), rope_frequencies(config.head_dim, config.rope_theta, scaling)
    )
    scale = attention_scale(scaling)

    def norms(pick: Callable[[Block], nn.Module | None]) -> Floats:
        found = [module.weight for module in map(pick, layers) if module is not None]
        return np.stack([_numpy(weight) for weight in found]) if found else np.empty((0, 0), np.float32)

    def matrices(*names: str) -> StepMatrix:
        return _stack(
            [{f"layers.{i}.{name}": layer.get_submodule(name) for name in names} for i, layer in enumerate(layers)]
        )

    embedding = _stack([{"embed_tokens": decoder.embed_tokens}])
    return Weights(
        embedding=embedding,
        qkv=matrices("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out=matrices("self_attn.o_proj"),
        gate_up=matrices("mlp.gate_proj", "mlp.up_proj"),
        down=matrices("mlp.down_proj"),
        head=embedding if config.tied_embeddings else _stack([{"lm_head": model.lm_head}]),
        input_norm=norms(lambda layer: layer.input_layernorm),
        post_norm=norms(lambda layer: layer.post_attention_layernorm),
        q_norm=norms(lambda layer: layer.self_attn.q_norm),
        k_norm=norms(lambda layer: layer.self_attn.k_norm),
        final_norm=_numpy(decoder.norm.weight),
        cos=_numpy(angles.cos() * scale),
        sin=_numpy(angles.sin() * scale),
    )


def _stack(layers: Sequence[Mapping[str, nn.Module]]) -> StepMatrix:
    """One matrix per layer: the rows of the layer's modules, given with their names, one after the other.

    Raises:
        ValueError: they are in different formats, which one kernel cannot multiply.
    """
    parts = [{name: _matrix(module) for name, module in modules.items()} for modules in layers]
    kinds: dict[Any, str] = {type(part): name for row in parts for name, part in row.items()}
    if len(kinds) > 1:
        found = ", ".join(f"{name} as {kind.__name__}" for kind, name in kinds.items())
        raise ValueError(
            "The CPU engine multiplies q_proj, k_proj and v_proj at once, and gate_proj and up_proj, so they and the "
            f"same matrix of every layer must be in one format; found {found}. Quantize the model with Bessemer."
        )
    by_layer = [[list(part) for part in row.values()] for row in parts]
    (kind,) = kinds
    stacked: StepMatrix = kind(*(np.stack([np.concatenate(a) for a in array]) for array in _by_array(by_layer)))
    return stacked


def _by_array(by_layer: Sequence[Sequence[Sequence[Any]]]) -> list[list[list[Any]]]:
    """[layer][module][array] -> [array][layer][module]."""
    return [[[module[i] for module in modules] for modules in by_layer] for i in range(len(by_layer[0][0]))]


def _matrix(module: nn.Module) -> Any:
    """The arrays of one module, without the dimension of layers."""
    if isinstance(module, PackedWeight):
        return module.format.step_matrix(module.quantized.tensors)
    return F32Matrix(_numpy(module.weight))


def _numpy(tensor: object) -> Floats:
    assert isinstance(tensor, torch.Tensor)
    return tensor.detach().float().contiguous().numpy()
