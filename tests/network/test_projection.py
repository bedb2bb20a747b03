"""Projections of every kind: one call, several side by side, mixed kinds, names, and a matrix unpacked once a pass."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from model.decoding.generate import TorchDecoder
from model.kernels.dispatch import fusion
from model.kernels.jit import COMPILED
from model.network.projection import PlainProjection, Projection, joint_product, replace_projections, swiglu_product
from model.quantization import formats
from model.quantization.calibrate import quantize_to_nearest
from model.quantization.packed import PackedEmbedding, PackedProjection, packed_layers
from model.training.precision.float8 import Float8Projection, use_float8
from model.training.precision.int8 import Int8Projection, use_int8
from tests.helpers.inference import random_model

FORMATS = tuple(formats.FORMATS)


class Doubled(PlainProjection):
    """A kind that says no more than it must, as an adapter would."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)

    joint = Projection.joint


class Counting(PackedProjection):
    """Counts how often its matrix is made of its codes."""

    asked = 0

    @property
    def weight(self) -> Tensor:
        self.asked += 1
        return super().weight


def some(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of(kind: type[PlainProjection], outputs: int, inputs: int, seed: int) -> PlainProjection:
    return kind(nn.Parameter(some((outputs, inputs), seed) / 7)).eval()


@pytest.fixture(params=[False, True], ids=["fp32", "autocast"])
def arithmetic(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=request.param):
        yield


@pytest.mark.parametrize("kinds", [(PlainProjection,) * 3, (Doubled,) * 3, (Doubled, PlainProjection, Int8Projection)])
@pytest.mark.usefixtures("arithmetic")
def test_side_by_side_is_one_after_the_other(kinds: tuple[type[PlainProjection], ...]) -> None:
    parts = [of(kind, size, 48, size) for kind, size in zip(kinds, (16, 32, 16))]
    x = some((2, 9, 48)).to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    torch.testing.assert_close(joint_product(x, *parts), expected)


@pytest.mark.parametrize("kinds", [(PlainProjection,) * 3, (Doubled,) * 3, (Doubled, PlainProjection, Doubled)])
@pytest.mark.usefixtures("arithmetic")
def test_an_mlp_asks_its_projections(kinds: tuple[type[PlainProjection], ...]) -> None:
    gate, up, down = (
        of(kind, *shape, seed) for seed, (kind, shape) in enumerate(zip(kinds, [(64, 48)] * 2 + [(48, 64)]))
    )
    x = some((2, 9, 48))
    factors = [2 if kind is Doubled else 1 for kind in kinds]
    inner = nn.functional.silu(factors[0] * (x @ gate.weight.T)) * factors[1] * (x @ up.weight.T)
    expected = factors[2] * (inner @ down.weight.T)
    with torch.no_grad():
        found = swiglu_product(x.bfloat16() if torch.is_autocast_enabled("cpu") else x, gate, up, down)
    assert float((found - expected.detach()).norm() / expected.detach().norm()) < (
        0.02 if torch.is_autocast_enabled("cpu") else 1e-5
    )


@pytest.mark.parametrize("kind", [Doubled, Int8Projection, Float8Projection, PackedProjection])
def test_names_stay_those_of_hugging_face(kind: type[Projection]) -> None:
    model = random_model()
    names = [name for name, module in model.named_modules() if isinstance(module, Projection)]
    weights = dict(model.named_parameters())
    if kind is PackedProjection:
        quantize_to_nearest(model, formats.FORMATS["int8"])
    elif kind is Int8Projection:
        use_int8(model)
    elif kind is Float8Projection:
        use_float8(model)
    else:
        replace_projections(model.model, PlainProjection, lambda name, old: Doubled(old.weight))
        assert all(weights[name] is parameter for name, parameter in model.named_parameters())
        assert list(weights) == list(model.state_dict())
    assert [name for name, module in model.named_modules() if isinstance(module, Projection)] == names
    assert names[:3] == [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"] and len(names) == 2 * 7 + 1
    assert sum(type(module) is kind for module in model.modules()) >= 2 * 7


def test_only_what_is_named_is_replaced_and_nothing_inside_of_it() -> None:
    class Around(Projection):
        def __init__(self, inner: PlainProjection) -> None:
            super().__init__()
            self.inner = inner

    model = random_model()
    replace_projections(model, PlainProjection, lambda name, old: Around(old) if name.endswith("q_proj") else old)
    replace_projections(model, PlainProjection, lambda name, old: Doubled(old.weight))
    attention = model.model.layers[1].self_attn
    assert isinstance(attention.q_proj, Around) and type(attention.q_proj.inner) is PlainProjection
    assert isinstance(attention.k_proj, Doubled) and isinstance(model.lm_head, Doubled)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.usefixtures("arithmetic")
def test_a_packed_matrix_is_dequantised_once_a_pass(weight_format: str, tied: bool) -> None:
    model = random_model(tied_embeddings=tied)
    quantize_to_nearest(model, formats.FORMATS[weight_format])
    replace_projections(model, PackedProjection, lambda name, old: Counting(old.quantized))
    counting = [module for module in model.modules() if isinstance(module, Counting)]
    assert len(counting) == 2 * 7 + (not tied)
    with torch.no_grad():
        model(torch.arange(12)[None])
    assert [module.asked for module in counting] == [1] * len(counting)
    with torch.autocast("cpu", enabled=False):
        TorchDecoder(model).append([1, 2, 3])
    assert [module.asked for module in counting] == [2] * len(counting)


@pytest.mark.skipif(not COMPILED, reason="needs the fused kernels")
@pytest.mark.parametrize("weight_format", FORMATS)
def test_packed_layers_run_fused_as_they_do_plain(weight_format: str) -> None:
    model, ids = random_model(), torch.arange(60)[None] % 50
    quantize_to_nearest(model, formats.FORMATS[weight_format])
    assert isinstance(model.model.embed_tokens, PackedEmbedding) and packed_layers(model)
    with torch.no_grad():
        exact = model(ids)
        with torch.autocast("cpu", torch.bfloat16):
            fused = model(ids)
            with fusion("off"):
                plain = model(ids)
    errors = [float((found.float() - exact).norm() / exact.norm()) for found in (fused, plain)]
    assert errors[0] < 1.15 * errors[1] < 0.05
