"""Rotary position embeddings and their scalings for longer contexts, with the arithmetic order of transformers."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from model.network.shape import RopeScaling


def _dynamic_base(head_dim: int, theta: float, scaling: RopeScaling, length: int) -> Tensor:
    """The base at which the slowest pair spans a text of `length` (NTK-aware scaling), in fp32 as transformers."""
    longest = torch.tensor(max(length, scaling.original_context_length))
    stretch = scaling.factor * longest / scaling.original_context_length - (scaling.factor - 1)
    return theta * stretch ** (head_dim / (head_dim - 2))


@lru_cache(maxsize=32)
def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling, length: int = 0) -> Tensor:
    """Angle in radians per position for each pair of dimensions, on the CPU: (head_dim / 2,).

    `length` is that of the text, which only `dynamic` looks at; 0: one that fits the context.
    """
    # Integers, then fp32, then the division, as transformers: another order gives other last bits.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    base = _dynamic_base(head_dim, theta, scaling, length) if scaling.kind == "dynamic" else theta
    frequencies = 1.0 / (base**exponents)
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3_frequencies(frequencies, scaling)
    if scaling.kind == "yarn":
        return _yarn_frequencies(theta**exponents, head_dim, theta, scaling)
    return frequencies


def _llama3_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_context_length
    wavelength = 2 * math.pi / frequencies
    scaled = torch.where(wavelength > length / low, frequencies / scaling.factor, frequencies)
    smooth = (length / wavelength - low) / (high - low)
    smoothed = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    between = (wavelength >= length / high) & (wavelength <= length / low)
    return torch.where(between, smoothed, scaled)


def _yarn_frequencies(period: Tensor, head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    def dimension_of(rotations: float) -> float:
        turns = scaling.original_context_length / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    high: float = min(math.ceil(dimension_of(scaling.beta_slow)), head_dim - 1)
    if low == high:
        high += 0.001  # as transformers: no division by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    extrapolate = 1 - ramp
    return 1.0 / (scaling.factor * period) * (1 - extrapolate) + 1.0 / period * extrapolate


def attention_scale(scaling: RopeScaling) -> float:
    """Factor on cosine and sine: YaRN's temperature, 1 for the others."""
    if scaling.kind != "yarn":
        return 1.0
    # The paper's sqrt(1 / t), for queries and keys both; so attention logits are divided by its t.
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0


@dataclass(frozen=True)
class Rotation:
    """Cosine and sine of each pair's angle by position: (batch or 1, seq, head_dim / 2)."""

    cos: Tensor
    sin: Tensor


def rotation(
    position_ids: Tensor, head_dim: int, theta: float, scaling: RopeScaling, dtype: torch.dtype = torch.float32
) -> Rotation:
    """The rotation at `position_ids`: (batch or 1, seq); computed in fp32, then cast to `dtype`.

    `dynamic` follows the longest of these texts; transformers follows the longest since a short one.
    """
    # Only `dynamic` depends on the data, which would otherwise have to come from the device.
    length = int(position_ids.max()) + 1 if scaling.kind == "dynamic" else 0
    frequencies = rope_frequencies(head_dim, theta, scaling, length).to(position_ids.device)
    angles = position_ids[..., None].float() * frequencies
    scale = attention_scale(scaling)
    return Rotation((angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype))


def apply_rope(x: Tensor, turn: Rotation) -> Tensor:
    """Rotate pairs (i, i + head_dim / 2) of `x`: (batch, seq, heads, head_dim)."""
    # Hugging Face's pairs. Neighbours, as in the paper (arXiv:2104.09864), ask for permuted rows of q and k.
    first, second = x.chunk(2, dim=-1)
    cos, sin = turn.cos.unsqueeze(2), turn.sin.unsqueeze(2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
