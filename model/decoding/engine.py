"""The decoder for a CPU: packed weights in the order that the compiled step reads them, and a key-value cache."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.decoding.generate import check_room
from model.decoding.step import Matrix, Shape, Weights, step
from model.kernels.e2m1 import interleave_nibbles
from model.network.rope import attention_scale, rope_frequencies
from model.network.transformer import Block, Transformer
from model.quantization.formats import SMALLEST_SCALE_BYTE, Int8Weight
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
        self._keys = np.empty((config.num_layers, config.num_kv_heads, capacity, config.head_dim), np.float32)
        self._values = np.empty_like(self._keys)
        self._vocab_size = config.vocab_size

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        del self.tokens[length:]

    def append(self, ids: Sequence[int]) -> Floats:
        """Read more tokens; the logits of the token after them: (vocab,)."""
        check_room(self, len(ids))
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise ValueError(f"Token id {token} is not in 0..{self._vocab_size - 1}, the model's vocabulary.")
        self._reserve(len(self.tokens) + len(ids))
        logits = np.empty(self._vocab_size, np.float32)
        for index, token in enumerate(ids):
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

    embedding = _stack([[decoder.embed_tokens]])
    return Weights(
        embedding=embedding,
        qkv=_stack([[a.q_proj, a.k_proj, a.v_proj] for a in (layer.self_attn for layer in layers)]),
        out=_stack([[layer.self_attn.o_proj] for layer in layers]),
        gate_up=_stack([[layer.mlp.gate_proj, layer.mlp.up_proj] for layer in layers]),
        down=_stack([[layer.mlp.down_proj] for layer in layers]),
        head=embedding if config.tied_embeddings else _stack([[model.lm_head]]),
        input_norm=norms(lambda layer: layer.input_layernorm),
        post_norm=norms(lambda layer: layer.post_attention_layernorm),
        q_norm=norms(lambda layer: layer.self_attn.q_norm),
        k_norm=norms(lambda layer: layer.self_attn.k_norm),
        final_norm=_numpy(decoder.norm.weight),
        cos=_numpy(angles.cos() * scale),
        sin=_numpy(angles.sin() * scale),
    )


def _stack(layers: Sequence[Sequence[nn.Module]]) -> Matrix:
    """One matrix per layer: the rows of the layer's modules one after the other."""
    parts = [[_matrix(module) for module in modules] for modules in layers]
    return Matrix(*(np.stack([np.concatenate([m[i] for m in row]) for row in parts]) for i in range(3)))


def _matrix(module: nn.Module) -> Matrix:
    """The arrays of one module, without the dimension of layers."""
    if not isinstance(module, PackedWeight):
        full = _numpy(module.weight)
        return Matrix(full, np.empty((len(full), 0), np.uint8), np.ones(len(full), np.float32))
    weight = module.quantized
    if isinstance(weight, Int8Weight):
        return Matrix(weight.codes.numpy(), np.empty((len(weight.codes), 0), np.uint8), weight.scales.numpy())
    codes, scales = interleave_nibbles(weight.codes.numpy()), weight.scale_bytes.numpy()
    if scales.min() < SMALLEST_SCALE_BYTE:
        raise ValueError("An NVFP4 block scale is below 2^-6, which this engine does not read. Quantize with Bessemer.")
    return Matrix(codes, scales, np.full(len(codes), weight.global_scale, np.float32))


def _numpy(tensor: object) -> Floats:
    assert isinstance(tensor, torch.Tensor)
    return tensor.detach().float().contiguous().numpy()
