"""The compiled engine against the torch model, for every weight format, vector form and shape of model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.decoding.decoders import decoder_for
from model.decoding.engine import Engine
from model.decoding.generate import TorchDecoder, generate
from model.kernels.e2m1 import FORMS, NVFP4Matrix, interleave_nibbles, supported_forms
from model.kernels.jit import fast_kernel
from model.network.shape import RopeScaling
from model.network.transformer import Transformer
from model.quantization import formats
from model.quantization.calibrate import quantize_to_nearest
from model.quantization.packed import PackedProjection
from tests.helpers.inference import random_model

FORMATS = ("f32", *formats.FORMATS)
SHAPES: dict[str, dict[str, object]] = {
    "qwen3, grouped queries": {},
    "llama, tied": {"qk_norm": False, "tied_embeddings": True},
    "one key-value head, odd sizes": {"num_kv_heads": 1, "head_dim": 24, "intermediate_size": 96},
    "llama3 positions": {"rope_scaling": RopeScaling("llama3", 4.0, 32), "rope_theta": 500_000.0},
    "yarn positions": {"rope_scaling": RopeScaling("yarn", 4.0, 32)},
}


def model_in(weight_format: str, **changes: object) -> Transformer:
    model = random_model(**changes)
    if weight_format != "f32":
        quantize_to_nearest(model, formats.FORMATS[weight_format])
    return model


def ids_of(length: int) -> list[int]:
    found: list[int] = np.random.default_rng(1).integers(0, 512, length).tolist()
    return found


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_equal_the_torch_forward(weight_format: str, shape: str) -> None:
    model, ids = model_in(weight_format, **SHAPES[shape]), ids_of(100)
    engine = Engine(model)
    found = np.stack([engine.append([token]) for token in ids])
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_packed_weights_stay_packed() -> None:
    model = model_in("nvfp4")
    engine = Engine(model)
    assert engine.weights.down.codes.dtype == np.uint8
    assert engine.weights.down.codes.nbytes == 2 * 64 * 128 // 2  # layers, rows, columns, two codes a byte
    assert engine.weights.head.codes.dtype == np.int8


@pytest.mark.parametrize("weight_format", FORMATS)
def test_cache_grows_and_rewinds(weight_format: str) -> None:
    model, ids = model_in(weight_format, context_length=700), ids_of(600)
    engine, reference = Engine(model), TorchDecoder(model)
    np.testing.assert_allclose(engine.append(ids), reference.append(ids), atol=1e-4)
    engine.truncate(100)
    np.testing.assert_allclose(engine.append(ids[100:300]), TorchDecoder(model).append(ids[:300]), atol=1e-4)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_greedy_equals_the_torch_decoder(weight_format: str) -> None:
    model = model_in(weight_format)
    for start in range(3):
        prompt = ids_of(20)[start:]
        assert generate(Engine(model), prompt, set(), 60) == generate(TorchDecoder(model), prompt, set(), 60)


def test_wrong_tokens_and_overlong_texts_are_refused() -> None:
    engine = Engine(model_in("f32", context_length=16))
    with pytest.raises(ValueError, match=r"Token id 512 is not in 0\.\.511"):
        engine.append([512])
    with pytest.raises(ValueError, match="has 17 tokens, but the model reads at most 16"):
        engine.append(ids_of(17))
    assert engine.tokens == []


def test_decoder_for_a_cpu_is_the_engine() -> None:
    assert isinstance(decoder_for(model_in("int8")), Engine)


def test_a_foreign_scale_is_refused() -> None:
    model = model_in("nvfp4")
    layer = model.model.layers[0].mlp.down_proj
    assert isinstance(layer, PackedProjection)
    layer.scales[0, 0] = 3  # a subnormal E4M3
    with pytest.raises(ValueError, match=r"below 2\^-6"):
        Engine(model)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form or "plain")
@pytest.mark.parametrize("columns", [32, 96, 704])
def test_every_vector_form_of_the_product_is_exact(form: str, columns: int) -> None:
    if form not in supported_forms():
        pytest.skip(f"this CPU has no {form}")
    generator = torch.Generator().manual_seed(columns)
    weight = formats.FORMATS["nvfp4"].nearest(torch.randn(16, columns, generator=generator))
    matrix = weight.format.step_matrix(weight.tensors)
    assert isinstance(matrix, NVFP4Matrix)
    x = torch.randn(columns, generator=generator)
    dot = fast_kernel(FORMS[form])
    found = [dot(matrix.codes[i], matrix.block_scales[i], x.numpy()) * matrix.row_scales[i] for i in range(16)]
    expected = weight.dequantize().double() @ x.double()
    np.testing.assert_allclose(found, expected, atol=1e-5 * columns**0.5)


def test_every_code_and_scale_is_read_right() -> None:
    for form in supported_forms():
        dot = fast_kernel(FORMS[form])
        for position in (0, 15, 16, 31):
            x = np.zeros(32, np.float32)
            x[position] = 1.0
            for code in range(16):
                codes = np.zeros((1, 32), np.uint8)
                codes[0, position] = code
                for byte in (0x08, 0x38, 0x7E):  # 2^-6, 1, 448
                    scale_value = {0x08: 2**-6, 0x38: 1.0, 0x7E: 448.0}[byte]
                    levels = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
                    expected = levels[code & 7] * (-1 if code & 8 else 1) * scale_value
                    scales = np.full(2, byte, np.uint8)
                    assert dot(interleave_nibbles(codes)[0], scales, x) == expected, (form, position, code, byte)


@pytest.mark.slow
def test_a_machine_without_avx_gives_the_same_logits(tmp_path: Path) -> None:
    script = (
        "import numpy as np; from model.kernels.e2m1 import supported_forms; from tests.decoding.test_engine import *\n"
        "assert supported_forms() == [''], supported_forms()\n"
        "for form in ('int8', 'nvfp4'):\n"
        "    model, ids = model_in(form), ids_of(20)\n"
        "    found, expected = Engine(model).append(ids), TorchDecoder(model).append(ids)\n"
        "    np.testing.assert_allclose(found, expected, atol=1e-4)\n"
    )
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, env={**os.environ, **generic}, timeout=300)
