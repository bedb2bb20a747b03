"""Weights in 8 and 4 bits: the formats, rounding to nearest, and the search for the scales that lose least.

INT8 has one scale per output row. NVFP4 (OCP Microscaling element E2M1; NVIDIA's block format) has 4-bit floats, one
E4M3 scale per 16 inputs and one scale per matrix. Ours is a power of two, so that level x block scale is exact in
bf16 and every engine that reads the format gets the same weights to the bit.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

WeightFormat = Literal["int8", "nvfp4"]

BLOCK = 16
"""Inputs that share an NVFP4 block scale."""
NVFP4_MULTIPLE = 32
"""Inputs of an NVFP4 matrix come in pairs of blocks: two codes a byte, 16 bytes at a time."""

E2M1_LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""What the codes 0..7 stand for; 8..15 are their negatives."""
_MIDPOINTS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])

_LARGEST_LEVEL = 6.0
SMALLEST_SCALE_BYTE = 0x08
"""2^-6, the smallest normal E4M3: the engine turns the byte into fp32 by a shift and an addition."""

_LARGEST_SCALE_BYTE = 0x7E  # 448
_LARGEST_SCALE = 448.0
_SCALE_STEPS = (0, 1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5)
"""E4M3 steps around the block's maximum / 6 that are tried. Four or five up the maximum becomes 4 instead of 6, where
the levels lie closer: without these the squared error is 8 to 12 % higher; beyond them nothing is left to gain."""


@dataclass(frozen=True)
class Int8Weight:
    """weight[i, j] = codes[i, j] * scales[i]. codes: int8 (rows, columns); scales: float32 (rows,)."""

    codes: Tensor
    scales: Tensor


@dataclass(frozen=True)
class NVFP4Weight:
    """weight[i, j] = level(codes[i, j]) * e4m3(scale_bytes[i, j // 16]) * global_scale.

    codes: uint8 0..15 (rows, columns); scale_bytes: uint8 (rows, columns / 16); global_scale: a power of two.
    """

    codes: Tensor
    scale_bytes: Tensor
    global_scale: float


QuantizedWeight = Int8Weight | NVFP4Weight


def dequantize(weight: QuantizedWeight) -> Tensor:
    """The fp32 matrix (rows, columns) that the codes stand for."""
    if isinstance(weight, Int8Weight):
        return weight.codes.float() * weight.scales[:, None]
    rows, columns = weight.codes.shape
    blocks = decode_e2m1(weight.codes).view(rows, columns // BLOCK, BLOCK)
    scales = decode_e4m3(weight.scale_bytes) * weight.global_scale
    return (blocks * scales[..., None]).view(rows, columns)


def quantize_nearest(weight: Tensor, weight_format: WeightFormat) -> QuantizedWeight:
    """Each weight rounded to its nearest code; NVFP4 block scales by least squares. weight: (rows, columns)."""
    if weight_format == "int8":
        scales = int8_scales(weight)
        return Int8Weight(int8_codes(weight, scales).to(torch.int8), scales)
    check_nvfp4_shape(weight)
    global_scale = nvfp4_global_scale(weight)
    blocks = weight.float().view(len(weight), -1, BLOCK)
    scale_bytes = search_scale_bytes(blocks, global_scale, torch.ones(BLOCK))
    codes = encode_e2m1(blocks / (decode_e4m3(scale_bytes) * global_scale)[..., None])
    return NVFP4Weight(codes.view(weight.shape), scale_bytes, global_scale)


def int8_scales(weight: Tensor) -> Tensor:
    """Largest magnitude of each row / 127; 1 for a row of zeros. (rows, columns) -> (rows,)."""
    largest = weight.float().abs().amax(-1)
    return torch.where(largest > 0, largest / 127, torch.ones_like(largest))


def int8_codes(weight: Tensor, scales: Tensor) -> Tensor:
    """Nearest codes -127..127 as floats. weight: (rows, columns); scales: (rows,)."""
    return (weight / scales[:, None]).round().clamp(-127, 127)


def check_nvfp4_shape(weight: Tensor) -> None:
    """Refuse a matrix that does not divide into pairs of blocks.

    Raises:
        ValueError: with the number of columns.
    """
    if weight.shape[1] % NVFP4_MULTIPLE:
        raise ValueError(f"NVFP4 needs a multiple of {NVFP4_MULTIPLE} inputs, got a matrix with {weight.shape[1]}.")


def nvfp4_global_scale(weight: Tensor) -> float:
    """The smallest power of two under which the largest weight's block scale still fits E4M3."""
    largest = float(weight.abs().max())
    if largest == 0.0:
        return 1.0
    return float(2.0 ** math.ceil(math.log2(largest / (_LARGEST_SCALE * _LARGEST_LEVEL))))


def search_scale_bytes(blocks: Tensor, global_scale: float, importance: Tensor) -> Tensor:
    """E4M3 bytes of the block scales with the least squared error, each input weighted by `importance`.

    blocks: (..., 16) weights; importance: broadcastable to it (1, or the diagonal of the Hessian). Returns uint8 (...).
    """
    largest = blocks.abs().amax(-1) / (_LARGEST_LEVEL * global_scale)
    nearest = largest.clamp(max=_LARGEST_SCALE).to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
    best_error = torch.full(largest.shape, math.inf, device=blocks.device)
    best = nearest.to(torch.uint8)
    for step in _SCALE_STEPS:
        candidate = (nearest + step).clamp(SMALLEST_SCALE_BYTE, _LARGEST_SCALE_BYTE).to(torch.uint8)
        scales = (decode_e4m3(candidate) * global_scale)[..., None]
        error = ((decode_e2m1(encode_e2m1(blocks / scales)) * scales - blocks).square() * importance).sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, candidate, best)
    return best


def encode_e2m1(x: Tensor) -> Tensor:
    """Nearest E2M1 codes 0..15 as uint8; beyond ±6 saturates, ties go to the even code as in the OCP specification."""
    magnitude = x.abs().contiguous()
    midpoints = _MIDPOINTS.to(x.device)
    upper = torch.bucketize(magnitude, midpoints, right=True)  # a tie counts as reached
    lower = torch.bucketize(magnitude, midpoints)  # a tie counts as not reached
    code = torch.where(upper % 2 == 0, upper, lower)  # equal but on a tie, where the even neighbour wins
    return (code + 8 * (x.signbit() & (code > 0))).to(torch.uint8)


def decode_e2m1(codes: Tensor) -> Tensor:
    """The values of codes 0..15, fp32."""
    levels = E2M1_LEVELS.to(codes.device)
    return torch.cat((levels, -levels))[codes.long()]


def decode_e4m3(scale_bytes: Tensor) -> Tensor:
    """The values of E4M3 bytes, fp32."""
    return scale_bytes.view(torch.float8_e4m3fn).float()


def pack_nibbles(codes: Tensor) -> Tensor:
    """Two codes a byte, the even column in the low half: (rows, columns) -> (rows, columns / 2), as on disk."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).view(len(packed), -1)
