"""NVFP4: 4-bit floats (E2M1 of OCP Microscaling), an E4M3 scale per block of 16, and the search for the best scales.

NVIDIA's format has one more scale per matrix. Ours is a power of two, so that level x block scale is exact in bf16 and
every engine that reads the format gets the same weights to the bit.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.kernels.e2m1 import BLOCK, LEVELS, NVFP4Matrix, interleave_nibbles

E2M1_LEVELS = torch.tensor(LEVELS)
_MIDPOINTS = (E2M1_LEVELS[1:] + E2M1_LEVELS[:-1]) / 2
_LARGEST_LEVEL = LEVELS[-1]

SMALLEST_SCALE_BYTE = 0x08
"""2^-6, the smallest normal E4M3: the engine turns the byte into fp32 by a shift and an addition."""
_LARGEST_SCALE_BYTE = 0x7E  # 448
_LARGEST_SCALE = 448.0
_SCALE_STEPS = (0, 1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5)
"""E4M3 steps around the block's maximum / 6 that are tried. Four or five up the maximum becomes 4 instead of 6, where
the levels lie closer: without these the squared error is 8 to 12 % higher; beyond them nothing is left to gain."""

_GGUF_BLOCK = 64


def nearest(weight: Tensor) -> dict[str, Tensor]:
    """Block scales by least squares, then the nearest level. weight: (rows, columns), columns a multiple of 32."""
    global_scale = global_scale_of(weight)
    blocks = weight.float().view(len(weight), -1, BLOCK)
    scale_bytes = search_scale_bytes(blocks, global_scale, torch.ones(BLOCK))
    codes = encode_e2m1(blocks / (decode_e4m3(scale_bytes) * global_scale)[..., None])
    return _tensors(codes.view(weight.shape), scale_bytes, global_scale)


class Rounding:
    """The same column by column: the scale of a block comes from the weights as GPTQ has corrected them by then."""

    def __init__(self, weight: Tensor, importance: Tensor) -> None:
        rows, columns = weight.shape
        self.global_scale = global_scale_of(weight)
        self.importance = importance
        self.codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
        self.scale_bytes = torch.empty(rows, columns // BLOCK, dtype=torch.uint8, device=weight.device)

    def round(self, rest: Tensor, column: int) -> Tensor:
        """Codes of one column of the weights (rows, columns); what they stand for: (rows,)."""
        block = column // BLOCK
        if column % BLOCK == 0:  # not before: its weights still change until then
            inputs = slice(column, column + BLOCK)
            self.scale_bytes[:, block] = search_scale_bytes(rest[:, inputs], self.global_scale, self.importance[inputs])
            self.scales = decode_e4m3(self.scale_bytes[:, block].contiguous()) * self.global_scale
        self.codes[:, column] = encode_e2m1(rest[:, column] / self.scales)
        return decode_e2m1(self.codes[:, column]) * self.scales

    def tensors(self) -> dict[str, Tensor]:
        """The matrix as it is stored."""
        return _tensors(self.codes, self.scale_bytes, self.global_scale)


def _tensors(codes: Tensor, scale_bytes: Tensor, global_scale: float) -> dict[str, Tensor]:
    """codes: uint8 0..15 (rows, columns); scale_bytes: uint8 (rows, columns / 16)."""
    matrix_scale = torch.tensor([global_scale], dtype=torch.float32, device=codes.device)
    return {"codes": pack_nibbles(codes), "scales": scale_bytes, "global_scale": matrix_scale}


def dequantize(tensors: Mapping[str, Tensor]) -> Tensor:
    """The fp32 matrix (rows, columns)."""
    codes = unpack_nibbles(tensors["codes"])
    rows, columns = codes.shape
    blocks = decode_e2m1(codes).view(rows, columns // BLOCK, BLOCK)
    scales = decode_e4m3(tensors["scales"]) * tensors["global_scale"]
    return (blocks * scales[..., None]).view(rows, columns)


def step_matrix(tensors: Mapping[str, Tensor]) -> NVFP4Matrix:
    """Codes in the order of the kernel.

    Raises:
        ValueError: a block scale is not a normal E4M3.
    """
    scales = tensors["scales"].numpy()
    if scales.min() < SMALLEST_SCALE_BYTE:
        raise ValueError("An NVFP4 block scale is below 2^-6, which this engine does not read. Quantize with Bessemer.")
    codes = interleave_nibbles(unpack_nibbles(tensors["codes"]).numpy())
    return NVFP4Matrix(codes, scales, np.full(len(codes), float(tensors["global_scale"]), np.float32))


def gguf_tensors(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.generic]]:
    """Per 64 inputs 4 scale bytes and 32 bytes of codes: (rows, columns / 64 * 36); the global scale by itself.

    Within 16 inputs, byte j holds input j in its low and input 8 + j in its high half.
    """
    codes = unpack_nibbles(tensors["codes"]).numpy()
    rows, columns = codes.shape
    halves = codes.reshape(rows, columns // BLOCK, 2, BLOCK // 2)
    packed = (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(rows, columns // _GGUF_BLOCK, _GGUF_BLOCK // 2)
    scales = tensors["scales"].numpy().reshape(rows, columns // _GGUF_BLOCK, -1)
    blocks = np.concatenate([scales, packed], axis=-1).reshape(rows, -1)
    return {"weight": blocks, "scale": tensors["global_scale"].numpy()}


def global_scale_of(weight: Tensor) -> float:
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
    by_maximum = largest.clamp(max=_LARGEST_SCALE).to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
    best_error = torch.full(largest.shape, math.inf, device=blocks.device)
    best = by_maximum.to(torch.uint8)
    # 0 comes first and `<` is strict: of equal errors the usual scale stays. The search takes a fifth off the loss of
    # SmolLM2-135M (perplexity 15.98 to 19.58 by maximum, 18.79 so).
    for step in _SCALE_STEPS:
        candidate = (by_maximum + step).clamp(SMALLEST_SCALE_BYTE, _LARGEST_SCALE_BYTE).to(torch.uint8)
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
    return (code + 8 * (x.signbit() & (code > 0))).to(torch.uint8)  # no negative zero: one code for one value


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
