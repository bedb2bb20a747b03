"""The formats against other people's decoders, rounding against brute force, GPTQ against rounding."""

import inspect
import math
import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from model.kernels.jit import MODEL_FOLDER, fast_kernel
from model.kernels.matvec import StepMatrix, read_row
from model.quantization.formats import FORMATS, GGUF_FILE_TYPES
from model.quantization.gptq import quantize_gptq
from model.quantization.nvfp4 import (
    E2M1_LEVELS,
    decode_e2m1,
    decode_e4m3,
    encode_e2m1,
    global_scale_of,
    pack_nibbles,
    search_scale_bytes,
    unpack_nibbles,
)
from model.quantization.packed import PackedEmbedding, PackedProjection
from tasks.models.quantize import QuantizeConfig

INT8, NVFP4 = FORMATS["int8"], FORMATS["nvfp4"]


@fast_kernel
def row_of(stacked: StepMatrix, row: int, out: NDArray[np.float32]) -> None:
    """A row of the only layer, as the compiled step reads an embedding."""
    read_row(stacked, 0, row, out)


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
    found = INT8.nearest(weight)
    assert found.format is INT8
    array = weight.numpy()
    scales = np.abs(array).max(1) / np.float32(127)
    np.testing.assert_array_equal(found.tensors["scales"].numpy(), scales)
    np.testing.assert_array_equal(found.tensors["codes"].numpy(), np.rint(array / scales[:, None]).astype(np.int8))
    assert float((found.dequantize() - weight).abs().max()) <= float(scales.max()) / 2 * 1.0001


def test_int8_keeps_a_row_of_zeros() -> None:
    weight = torch.zeros(2, 32)
    weight[1, 3] = 5.0
    assert torch.equal(INT8.nearest(weight).dequantize(), weight)


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
    blocks, global_scale = weight.view(256, -1, 16), global_scale_of(weight)

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
    global_scale = global_scale_of(weight)

    def error_of_important(weights: torch.Tensor) -> float:
        scales = (decode_e4m3(search_scale_bytes(weight, global_scale, weights)) * global_scale)[:, None]
        return float((decode_e2m1(encode_e2m1(weight / scales)) * scales - weight)[:, :4].square().sum())

    assert error_of_important(importance) < 0.8 * error_of_important(torch.ones(16))


def test_scale_search_beats_the_largest_weight_rule() -> None:
    weight = matrix(64, 256)
    found = NVFP4.nearest(weight)
    blocks = weight.view(64, -1, 16)
    scale = (blocks.abs().amax(-1) / 6).to(torch.float8_e4m3fn).float()[..., None].clamp(min=2**-9)
    by_rule = decode_e2m1(encode_e2m1(blocks / scale)) * scale
    assert float((found.dequantize() - weight).square().mean()) < 0.9 * float((by_rule - blocks).square().mean())


def test_nvfp4_decodes_in_gguf_to_the_same_bits() -> None:
    found = NVFP4.nearest(matrix(24, 192))
    assert found.format is NVFP4
    written = found.format.gguf_tensors(found.tensors)
    theirs = gguf.dequantize(written["weight"], GGMLQuantizationType[found.format.gguf_type]) * written["scale"]
    np.testing.assert_array_equal(theirs.reshape(24, 192), found.dequantize().numpy())


def test_nvfp4_decodes_in_torchao_to_the_same_bits() -> None:
    tensors = pytest.importorskip(
        "torchao.prototype.mx_formats.nvfp4_tensor", reason="torchao is not installed: NVFP4 is checked with gguf only"
    )
    found = NVFP4.nearest(matrix(32, 64))
    assert found.format is NVFP4
    theirs = tensors.NVFP4Tensor(
        found.tensors["codes"],
        found.tensors["scales"].view(torch.float8_e4m3fn),
        16,
        torch.float32,
        torch.tensor(float(found.tensors["global_scale"])),
    )
    assert torch.equal(theirs.dequantize(torch.float32), found.dequantize())


def test_nvfp4_is_exact_in_bf16() -> None:
    weight = NVFP4.nearest(matrix(32, 64)).dequantize()
    assert torch.equal(weight.bfloat16().float(), weight)


def test_nvfp4_scales_are_normal_and_the_global_one_a_power_of_two() -> None:
    weight = matrix(16, 64)
    weight[:, :16] *= 1e-9  # a block that would like a scale below E4M3's smallest
    found = NVFP4.nearest(weight)
    assert found.format is NVFP4
    assert int(found.tensors["scales"].min()) >= 0x08
    assert int(found.tensors["scales"].max()) <= 0x7E
    assert math.log2(float(found.tensors["global_scale"])).is_integer()
    assert torch.equal(NVFP4.nearest(torch.zeros(4, 32)).dequantize(), torch.zeros(4, 32))


def test_nvfp4_refuses_odd_shapes() -> None:
    with pytest.raises(ValueError, match="multiple of 32 inputs, got a matrix with 40"):
        NVFP4.nearest(matrix(4, 40))


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 1000))
def test_nibbles_round_trip(rows: int, pairs: int, seed: int) -> None:
    codes = torch.randint(0, 16, (rows, 2 * pairs), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_nibbles(codes)
    assert packed.shape == (rows, pairs)
    assert int(packed[0, 0]) == int(codes[0, 0]) + 16 * int(codes[0, 1])
    assert torch.equal(unpack_nibbles(packed), codes)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_gptq_keeps_outputs_better_than_rounding(weight_format: str) -> None:
    weight, inputs = matrix(48, 160), correlated_inputs(2000, 160)
    hessian = inputs.T @ inputs
    nearest, gptq = FORMATS[weight_format].nearest(weight), quantize_gptq(weight, hessian, FORMATS[weight_format], 0.01)
    errors = [float((inputs @ (found.dequantize() - weight).T).square().mean()) for found in (nearest, gptq)]
    assert errors[1] < 0.7 * errors[0], errors


def test_gptq_of_independent_inputs_is_rounding() -> None:
    weight = matrix(8, 64)
    found = quantize_gptq(weight, torch.eye(64) * 100, INT8, 0.01)
    assert torch.equal(found.dequantize(), INT8.nearest(weight).dequantize())


@pytest.mark.parametrize("weight_format", FORMATS)
def test_gptq_bears_inputs_that_never_fire(weight_format: str) -> None:
    weight = matrix(8, 64)
    for inputs in (torch.zeros(10, 64), torch.cat((torch.randn(100, 32), torch.zeros(100, 32)), 1)):
        found = quantize_gptq(weight, inputs.T @ inputs, FORMATS[weight_format], 0.01).dequantize()
        assert torch.isfinite(found).all()
        assert float((found - weight).abs().max()) < 0.2


@pytest.mark.parametrize("weight_format", FORMATS)
def test_packed_layers_compute_with_the_dequantized_weights(weight_format: str) -> None:
    weight = matrix(64, 96)
    found = FORMATS[weight_format].nearest(weight)
    linear, embedding = PackedProjection(found), PackedEmbedding(found)
    x, ids = torch.randn(5, 96), torch.tensor([[0, 3], [63, 3]])
    assert torch.equal(linear(x), x @ found.dequantize().T)
    assert torch.equal(embedding(ids), found.dequantize()[ids])
    stored = sum(t.numel() * t.element_size() for t in linear.state_dict().values())
    assert stored < weight.numel() * found.format.bits_per_weight / 8 * 1.06  # row scales


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_format_stores_what_it_says(weight_format: str) -> None:
    form, weight = FORMATS[weight_format], matrix(8, 96)
    for found in (form.nearest(weight), quantize_gptq(weight, torch.eye(96), form, 0.01)):
        described = {name: (stored.shape(8, 96), stored.dtype) for name, stored in form.stored.items()}
        assert {n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in found.tensors.items()} == described
        assert found.columns == 96
    assert FORMATS["int8"].bits_per_weight == 8 and FORMATS["nvfp4"].bits_per_weight == 4 + 8 / 16


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_kernel_reads_the_rows_that_the_format_means(weight_format: str) -> None:
    weight = FORMATS[weight_format].nearest(matrix(8, 96))
    one_layer = FORMATS[weight_format].step_matrix(weight.tensors)
    stacked = type(one_layer)(*(array[None] for array in one_layer))  # type: ignore[misc, call-arg, attr-defined]
    found = np.empty((8, 96), np.float32)
    for row in range(8):
        row_of(stacked, row, found[row])
    np.testing.assert_array_equal(found, weight.dequantize().numpy())


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_change_of_a_kernel_is_noticed(weight_format: str) -> None:
    """The cache of compiled kernels counts the files that import `model.kernels.jit`, so a kernel's must."""
    one_layer = FORMATS[weight_format].step_matrix(FORMATS[weight_format].nearest(matrix(8, 96)).tensors)
    source = Path(inspect.getfile(type(one_layer)))
    assert source.is_relative_to(MODEL_FOLDER) and "model.kernels.jit" in source.read_text()


def test_formats_are_named_in_one_place() -> None:
    """The config, the export and the form in Prefect learn of a format from the registry."""
    assert QuantizeConfig.model_json_schema()["properties"]["format"]["enum"] == list(FORMATS)
    assert all(FORMATS[name].name == name for name in FORMATS)
    assert set(GGUF_FILE_TYPES) & set(FORMATS) == {"nvfp4"}
    *first, last = map(repr, FORMATS)
    with pytest.raises(ValidationError, match=f"{', '.join(first)} or {last}"):
        QuantizeConfig(format="int3")
    outside = [
        path
        for layer in ("model", "tasks")
        for path in (MODEL_FOLDER.parent / layer).rglob("*.py")
        if path.name != "formats.py" and re.search(r"""[=!]= ?["'](int8|nvfp4)["']""", path.read_text())
    ]
    trains = {"flops.py", "job.py"}  # `precision` of training, another thing
    assert {path.name for path in outside} <= trains


def test_names_of_formats_do_not_wait_for_torch() -> None:
    """Recipes and the command line read them, and torch takes seconds to import."""
    code = "import sys, model.quantization.formats; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=MODEL_FOLDER.parent)
