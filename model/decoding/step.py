"""One token through the whole model as one compiled function, over fp32, INT8 or packed NVFP4 weights.

A decode step of a small model is a thousand tiny operations; called one by one from Python they cost more than they
compute (torch reaches 600 tokens/s where this reaches 6,000, on 4M weights and one core). The format is the element
type of `Matrix.codes`, so numba compiles each from the same source and keeps the result on disk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.kernels.e2m1 import dot_nvfp4
from model.kernels.jit import fast_helper, fast_kernel, overload
from model.kernels.scalars import LOG2E, exp2, sigmoid

F32 = np.float32
Floats = NDArray[np.float32]


class Matrix(NamedTuple):
    """A matrix (rows, columns) of every layer, or a stack of one.

    codes: (layers, rows, columns) fp32 or int8, or NVFP4 uint8 (layers, rows, columns / 2) in the order of
    `interleave_nibbles`. block_scales: E4M3 bytes (layers, rows, columns / 16), empty but for NVFP4. row_scales:
    (layers, rows), INT8's scale or NVFP4's global one; of no meaning for fp32.
    """

    codes: NDArray[Any]
    block_scales: NDArray[np.uint8]
    row_scales: Floats


class Weights(NamedTuple):
    """Everything a step reads. Norms: (layers, size), q_norm and k_norm empty without QK-norm."""

    embedding: Matrix
    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    head: Matrix
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


def _multiply(codes: NDArray[Any], block_scales: NDArray[np.uint8], row_scales: Floats, x: Floats, y: Floats) -> None:
    """y = matrix @ x, the matrix of one layer. x: (columns,); y: (rows,)."""
    raise NotImplementedError  # one compiled form for each element type, below


@overload(_multiply)
def _compile_multiply(codes: Any, block_scales: Any, row_scales: Any, x: Any, y: Any) -> Callable[..., None]:
    forms: dict[str, Callable[..., None]] = {"float32": _multiply_f32, "int8": _multiply_int8, "uint8": _multiply_nvfp4}
    return forms[str(codes.dtype)]


def _multiply_f32(codes: Floats, block_scales: NDArray[np.uint8], row_scales: Floats, x: Floats, y: Floats) -> None:
    for i in range(codes.shape[0]):
        row = codes[i]
        total = F32(0.0)
        for j in range(x.shape[0]):
            total += row[j] * x[j]
        y[i] = total


def _multiply_int8(
    codes: NDArray[np.int8], block_scales: NDArray[np.uint8], row_scales: Floats, x: Floats, y: Floats
) -> None:
    for i in range(codes.shape[0]):
        row = codes[i]
        total = F32(0.0)
        for j in range(x.shape[0]):
            total += F32(row[j]) * x[j]
        y[i] = total * row_scales[i]


def _multiply_nvfp4(
    codes: NDArray[np.uint8], block_scales: NDArray[np.uint8], row_scales: Floats, x: Floats, y: Floats
) -> None:
    for i in range(codes.shape[0]):
        y[i] = dot_nvfp4(codes[i], block_scales[i], x) * row_scales[i]


def _embed(codes: NDArray[Any], row_scales: Floats, token: int, x: Floats) -> None:
    """x = row `token` of the embedding."""
    raise NotImplementedError  # one compiled form for each element type, below


@overload(_embed)
def _compile_embed(codes: Any, row_scales: Any, token: Any, x: Any) -> Callable[..., None]:
    forms: dict[str, Callable[..., None]] = {"float32": _embed_f32, "int8": _embed_int8}
    return forms[str(codes.dtype)]


def _embed_f32(codes: Floats, row_scales: Floats, token: int, x: Floats) -> None:
    x[:] = codes[token]


def _embed_int8(codes: NDArray[np.int8], row_scales: Floats, token: int, x: Floats) -> None:
    row = codes[token]
    for j in range(x.shape[0]):
        x[j] = F32(row[j]) * row_scales[token]


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
    for t in range(positions):
        scores[t] = exp2(scores[t] - largest)
        total += scores[t]
    for j in range(dim):
        out[j] = F32(0.0)
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
    _embed(weights.embedding.codes[0], weights.embedding.row_scales[0], token, x)
    for layer in range(layers):
        _norm(x, weights.input_norm[layer], eps, h)
        matrix = weights.qkv
        _multiply(matrix.codes[layer], matrix.block_scales[layer], matrix.row_scales[layer], h, qkv)
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
            group = index * kv_heads // heads
            past_keys, past_values = keys[layer, group, : position + 1], values[layer, group, : position + 1]
            _attend(qkv[here], past_keys, past_values, scores, mixed[here])
        matrix = weights.out
        _multiply(matrix.codes[layer], matrix.block_scales[layer], matrix.row_scales[layer], mixed, delta)
        for j in range(hidden):
            x[j] += delta[j]
        _norm(x, weights.post_norm[layer], eps, h)
        matrix = weights.gate_up
        _multiply(matrix.codes[layer], matrix.block_scales[layer], matrix.row_scales[layer], h, gate_up)
        for j in range(inner):
            gate_up[j] = gate_up[j] * sigmoid(gate_up[j]) * gate_up[inner + j]
        matrix = weights.down
        _multiply(matrix.codes[layer], matrix.block_scales[layer], matrix.row_scales[layer], gate_up[:inner], delta)
        for j in range(hidden):
            x[j] += delta[j]
    if logits.shape[0]:
        _norm(x, weights.final_norm, eps, h)
        _multiply(weights.head.codes[0], weights.head.block_scales[0], weights.head.row_scales[0], h, logits)
