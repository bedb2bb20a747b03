"""The formats against other people's decoders, rounding against brute force, GPTQ against rounding."""

import math

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from model.quantization.formats import (
    E2M1_LEVELS,
    Int8Weight,
    NVFP4Weight,
    decode_e2m1,
    decode_e4m3,
    dequantize,
    encode_e2m1,
    nvfp4_global_scale,
    pack_nibbles,
    quantize_nearest,
    search_scale_bytes,
    unpack_nibbles,
)
from model.quantization.gptq import quantize_gptq
from model.quantization.packed import PackedEmbedding, PackedProjection
from tasks.models.export import nvfp4_blocks


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Weights with some outliers, as trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    return weight * (1 + 5 * (torch.rand(rows, columns, generator=generator) > 0.99))


def correlated_inputs(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Inputs of a layer: directions of very different strength."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)[:, None]
    return torch.randn(rows, columns, generator=generator) @ mixing


def test_int8_is_the_plain_formula() -> None:
    weight = matrix(32, 64)
    found = quantize_nearest(weight, "int8")
    assert isinstance(found, Int8Weight)
    array = weight.numpy()
    scales = np.abs(array).max(1) / np.float32(127)
    np.testing.assert_array_equal(found.scales.numpy(), scales)
    np.testing.assert_array_equal(found.codes.numpy(), np.rint(array / scales[:, None]).astype(np.int8))
    assert float((dequantize(found) - weight).abs().max()) <= float(scales.max()) / 2 * 1.0001


def test_int8_keeps_a_row_of_zeros() -> None:
    weight = torch.zeros(2, 32)
    weight[1, 3] = 5.0
    assert torch.equal(dequantize(quantize_nearest(weight, "int8")), weight)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=50))
def test_e2m1_is_the_nearest_level(values: list[float]) -> None:
    x = torch.tensor(values)
    signed = torch.cat((-E2M1_LEVELS, E2M1_LEVELS))
    nearest = (x[:, None].double() - signed.double()).abs().min(1).values
    assert torch.equal((decode_e2m1(encode_e2m1(x)).double() - x.double()).abs(), nearest)


def test_e2m1_ties_go_to_the_even_code() -> None:
    midpoints = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert encode_e2m1(midpoints).tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert encode_e2m1(-midpoints).tolist() == [0, 10, 10, 12, 12, 14, 14]  # no negative zero
    assert encode_e2m1(torch.tensor([100.0, -100.0])).tolist() == [7, 15]


@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_scale_search_finds_what_a_search_of_all_scales_finds(size: float) -> None:
    weight = matrix(256, 64) * size
    blocks, global_scale = weight.view(256, -1, 16), nvfp4_global_scale(weight)

    def error(scale_bytes: torch.Tensor) -> torch.Tensor:
        scales = (decode_e4m3(scale_bytes) * global_scale)[..., None]
        return (decode_e2m1(encode_e2m1(blocks / scales)) * scales - blocks).square().sum(-1)

    every = torch.arange(0x08, 0x7F, dtype=torch.uint8)
    best = torch.stack([error(byte.expand(blocks.shape[:2]).contiguous()) for byte in every]).amin(0)
    found = error(search_scale_bytes(blocks, global_scale, torch.ones(16)))
    assert float(found.sum()) <= float(best.sum()) * 1.001


def test_scale_search_serves_the_important_inputs() -> None:
    weight = matrix(256, 16)
    importance = torch.tensor([100.0] * 4 + [1.0] * 12)
    global_scale = nvfp4_global_scale(weight)

    def error_of_important(weights: torch.Tensor) -> float:
        scales = (decode_e4m3(search_scale_bytes(weight, global_scale, weights)) * global_scale)[:, None]
        return float((decode_e2m1(encode_e2m1(weight / scales)) * scales - weight)[:, :4].square().sum())

    assert error_of_important(importance) < 0.8 * error_of_important(torch.ones(16))


def test_scale_search_beats_the_largest_weight_rule() -> None:
    weight = matrix(64, 256)
    found = quantize_nearest(weight, "nvfp4")
    blocks = weight.view(64, -1, 16)
    scale = (blocks.abs().amax(-1) / 6).to(torch.float8_e4m3fn).float()[..., None].clamp(min=2**-9)
    by_rule = decode_e2m1(encode_e2m1(blocks / scale)) * scale
    assert float((dequantize(found) - weight).square().mean()) < 0.9 * float((by_rule - blocks).square().mean())


def test_nvfp4_decodes_in_gguf_to_the_same_bits() -> None:
    found = quantize_nearest(matrix(24, 192), "nvfp4")
    assert isinstance(found, NVFP4Weight)
    theirs = gguf.dequantize(nvfp4_blocks(found, 0, "test"), GGMLQuantizationType.NVFP4) * found.global_scale
    np.testing.assert_array_equal(theirs.reshape(24, 192), dequantize(found).numpy())


def test_nvfp4_decodes_in_torchao_to_the_same_bits() -> None:
    tensors = pytest.importorskip(
        "torchao.prototype.mx_formats.nvfp4_tensor", reason="torchao is not installed: NVFP4 is checked with gguf only"
    )
    found = quantize_nearest(matrix(32, 64), "nvfp4")
    assert isinstance(found, NVFP4Weight)
    theirs = tensors.NVFP4Tensor(
        pack_nibbles(found.codes),
        found.scale_bytes.view(torch.float8_e4m3fn),
        16,
        torch.float32,
        torch.tensor(found.global_scale),
    )
    assert torch.equal(theirs.dequantize(torch.float32), dequantize(found))


def test_nvfp4_is_exact_in_bf16() -> None:
    weight = dequantize(quantize_nearest(matrix(32, 64), "nvfp4"))
    assert torch.equal(weight.bfloat16().float(), weight)


def test_nvfp4_scales_are_normal_and_the_global_one_a_power_of_two() -> None:
    weight = matrix(16, 64)
    weight[:, :16] *= 1e-9  # a block that would like a scale below E4M3's smallest
    found = quantize_nearest(weight, "nvfp4")
    assert isinstance(found, NVFP4Weight)
    assert int(found.scale_bytes.min()) >= 0x08
    assert int(found.scale_bytes.max()) <= 0x7E
    assert math.log2(found.global_scale).is_integer()
    assert torch.equal(dequantize(quantize_nearest(torch.zeros(4, 32), "nvfp4")), torch.zeros(4, 32))


def test_nvfp4_refuses_odd_shapes() -> None:
    with pytest.raises(ValueError, match="multiple of 32 inputs, got a matrix with 40"):
        quantize_nearest(matrix(4, 40), "nvfp4")


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 1000))
def test_nibbles_round_trip(rows: int, pairs: int, seed: int) -> None:
    codes = torch.randint(0, 16, (rows, 2 * pairs), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_nibbles(codes)
    assert packed.shape == (rows, pairs)
    assert int(packed[0, 0]) == int(codes[0, 0]) + 16 * int(codes[0, 1])
    assert torch.equal(unpack_nibbles(packed), codes)


@pytest.mark.parametrize("weight_format", ["int8", "nvfp4"])
def test_gptq_keeps_outputs_better_than_rounding(weight_format: str) -> None:
    weight, inputs = matrix(48, 160), correlated_inputs(2000, 160)
    hessian = inputs.T @ inputs
    nearest, gptq = quantize_nearest(weight, weight_format), quantize_gptq(weight, hessian, weight_format, 0.01)
    errors = [float((inputs @ (dequantize(found) - weight).T).square().mean()) for found in (nearest, gptq)]
    assert errors[1] < 0.7 * errors[0], errors


def test_gptq_of_independent_inputs_is_rounding() -> None:
    weight = matrix(8, 64)
    found = quantize_gptq(weight, torch.eye(64) * 100, "int8", 0.01)
    assert torch.equal(dequantize(found), dequantize(quantize_nearest(weight, "int8")))


@pytest.mark.parametrize("weight_format", ["int8", "nvfp4"])
def test_gptq_bears_inputs_that_never_fire(weight_format: str) -> None:
    weight = matrix(8, 64)
    for inputs in (torch.zeros(10, 64), torch.cat((torch.randn(100, 32), torch.zeros(100, 32)), 1)):
        found = dequantize(quantize_gptq(weight, inputs.T @ inputs, weight_format, 0.01))
        assert torch.isfinite(found).all()
        assert float((found - weight).abs().max()) < 0.2


@pytest.mark.parametrize("weight_format", ["int8", "nvfp4"])
def test_packed_layers_compute_with_the_dequantized_weights(weight_format: str) -> None:
    weight = matrix(64, 96)
    found = quantize_nearest(weight, weight_format)
    linear, embedding = PackedProjection(found), PackedEmbedding(found)
    x, ids = torch.randn(5, 96), torch.tensor([[0, 3], [63, 3]])
    assert torch.equal(linear(x), x @ dequantize(found).T)
    assert torch.equal(embedding(ids), dequantize(found)[ids])
    stored = sum(t.numel() * t.element_size() for t in linear.state_dict().values())
    assert stored < weight.numel() * (1.1 if weight_format == "int8" else 0.6)
