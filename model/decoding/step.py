"""One token through the whole model as one compiled function, over fp32, INT8 or packed NVFP4 weights.

A decode step of a small model is a thousand tiny operations; called one by one from Python they cost more than they
compute (torch reaches 600 tokens/s where this reaches 6,000, on 4M weights and one core). How a matrix is multiplied is
said by its class (`model.kernels.matvec`), so numba compiles each format from the same source and keeps the result on
disk. Activations stay fp32: in INT8 with a scale per vector the largest logit error was 1.48 standard deviations where
weights alone have 0.37 (docs/LOG.md).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.kernels.jit import fast_helper, fast_kernel
from model.kernels.matvec import StepMatrix, multiply, read_row
from model.kernels.scalars import LOG2E, exp2, sigmoid

F32 = np.float32
Floats = NDArray[np.float32]


class Weights(NamedTuple):
    """Everything a step reads. Norms: (layers, size), q_norm and k_norm empty without QK-norm."""

    embedding: StepMatrix
    qkv: StepMatrix
    out: StepMatrix
    gate_up: StepMatrix
    down: StepMatrix
    head: StepMatrix
    input_norm: Floats
    post_norm: Floats
    q_norm: Floats
    k_norm: Floats
    final_norm: Floats
    cos: Floats  # (positions, head_dim / 2)
    sin: Floats


class Shape(NamedTuple):
    """What the arrays' own shapes do not tell."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float


@fast_helper
def _norm(x: Floats, weight: Floats, eps: float, out: Floats) -> None:
    """out = weight * x / rms(x); out may be x."""
    squares = F32(0.0)
    for j in range(x.shape[0]):
        squares += x[j] * x[j]
    inverse = F32(1.0) / np.sqrt(squares / F32(x.shape[0]) + F32(eps))
    for j in range(x.shape[0]):
        out[j] = weight[j] * (x[j] * inverse)


@fast_helper
def _rotate(head: Floats, cos: Floats, sin: Floats) -> None:
    """Turn the pairs (i, i + head_dim / 2) of one head by the angles of its position."""
    half = cos.shape[0]
    for j in range(half):
        first, second = head[j], head[half + j]
        head[j] = first * cos[j] - second * sin[j]
        head[half + j] = second * cos[j] + first * sin[j]


@fast_helper
def _attend(query: Floats, keys: Floats, values: Floats, scores: Floats, out: Floats) -> None:
    """softmax(query keysᵀ / sqrt(head_dim)) values. keys, values: (positions, head_dim); scores: scratch."""
    positions, dim = keys.shape
    scale = LOG2E / np.sqrt(F32(dim))  # softmax in base 2
    largest = F32(-np.inf)
    for t in range(positions):
        key = keys[t]
        dot = F32(0.0)
        for j in range(dim):
            dot += query[j] * key[j]
        scores[t] = dot * scale
        largest = max(largest, scores[t])
    total = F32(0.0)
    # The largest is known by now: no exponential overflows.
    for t in range(positions):
        scores[t] = exp2(scores[t] - largest)
        total += scores[t]
    for j in range(dim):
        out[j] = F32(0.0)
    # A position at a time, as values lie in memory.
    for t in range(positions):
        share, value = scores[t] / total, values[t]
        for j in range(dim):
            out[j] += share * value[j]


@fast_kernel
def step(
    token: int,
    position: int,
    weights: Weights,
    shape: Shape,
    keys: Floats,
    values: Floats,
    logits: Floats,
) -> None:
    """Read `token` at `position`, extend the cache, and write the logits of the next token.

    keys, values: (layers, kv_heads, capacity, head_dim); logits: (vocab,), or empty where they are not wanted.
    """
    heads, kv_heads, dim, eps = shape
    layers, hidden = weights.input_norm.shape
    inner = weights.gate_up.codes.shape[1] // 2
    x, h, delta = np.empty(hidden, F32), np.empty(hidden, F32), np.empty(hidden, F32)
    qkv, mixed = np.empty((heads + 2 * kv_heads) * dim, F32), np.empty(heads * dim, F32)
    gate_up, scores = np.empty(2 * inner, F32), np.empty(position + 1, F32)
    cos, sin = weights.cos[position], weights.sin[position]
    read_row(weights.embedding, 0, token, x)  # a stack of one: it has no layers
    for layer in range(layers):
        _norm(x, weights.input_norm[layer], eps, h)
        multiply(weights.qkv, layer, h, qkv)
        for index in range(heads + kv_heads):
            head = qkv[index * dim : (index + 1) * dim]
            if weights.q_norm.shape[0]:
                _norm(head, weights.q_norm[layer] if index < heads else weights.k_norm[layer], eps, head)
            _rotate(head, cos, sin)
        for index in range(kv_heads):
            start = (heads + index) * dim
            keys[layer, index, position] = qkv[start : start + dim]
            start += kv_heads * dim
            values[layer, index, position] = qkv[start : start + dim]
        for index in range(heads):
            here = slice(index * dim, (index + 1) * dim)
            group = index * kv_heads // heads  # query heads that share keys are neighbours
            past_keys, past_values = keys[layer, group, : position + 1], values[layer, group, : position + 1]
            _attend(qkv[here], past_keys, past_values, scores, mixed[here])
        multiply(weights.out, layer, mixed, delta)
        for j in range(hidden):
            x[j] += delta[j]
        _norm(x, weights.post_norm[layer], eps, h)
        multiply(weights.gate_up, layer, h, gate_up)
        for j in range(inner):
            gate_up[j] = gate_up[j] * sigmoid(gate_up[j]) * gate_up[inner + j]
        multiply(weights.down, layer, gate_up[:inner], delta)
        for j in range(hidden):
            x[j] += delta[j]
    if logits.shape[0]:
        _norm(x, weights.final_norm, eps, h)
        multiply(weights.head, 0, h, logits)
