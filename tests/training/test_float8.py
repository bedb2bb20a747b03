"""FP8 products by the numbers: the formula of scaled values, errors against fp32, and a model that learns with them."""

import copy

import pytest
import torch
from torch import Tensor

from model.kernels.dispatch import fusion
from model.network.head import linear_cross_entropy
from model.network.projection import PlainProjection
from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from model.training.precision.float8 import Float8Projection, check_float8, to_float8, use_float8

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=64,
    context_length=32,
)  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The values that FP8 holds in place of `x`."""
    values, scale = to_float8(x, dtype)
    return values.float() * scale


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_scaling_uses_the_whole_range(dtype: torch.dtype, size: float) -> None:
    x = random(40, 50) * size
    values, scale = to_float8(x, dtype)
    assert values.float().abs().max() == torch.finfo(dtype).max
    bits = 3 if dtype == torch.float8_e4m3fn else 2
    within = x.abs() > x.abs().max() / 1000  # below, E4M3 has fewer bits
    relative = (values.float() * scale - x).abs() / x.abs()
    assert relative[within].max() <= 2 ** -(bits + 1) * 1.001
    assert scale.dtype == torch.float32 and scale.ndim == 0


def test_zeros_stay_zeros() -> None:
    linear = Float8Projection.of(16, 32)
    linear.weight.data.zero_()
    out = linear(random(3, 16).requires_grad_())
    out.sum().backward()
    assert not out.any() and torch.isfinite(linear.weight.grad).all()


@pytest.mark.parametrize("rows", [32, 7])
def test_values_and_gradients_follow_the_formula(rows: int) -> None:
    linear = Float8Projection.of(48, 64)
    x, grad = random(rows, 48, seed=1).requires_grad_(), random(rows, 64, seed=2).bfloat16()
    out = linear(x)
    out.backward(grad)
    assert out.dtype == torch.bfloat16 and x.grad is not None and linear.weight.grad is not None
    q_x, q_w = rounded(x.detach(), torch.float8_e4m3fn), rounded(linear.weight.detach(), torch.float8_e4m3fn)
    q_g = rounded(grad, torch.float8_e5m2)
    torch.testing.assert_close(out.float(), q_x @ q_w.T, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(x.grad, q_g @ q_w, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(linear.weight.grad, q_g.T @ q_x, rtol=1e-5, atol=1e-4)
    exact = x.detach() @ linear.weight.detach().T, grad.float() @ linear.weight.detach(), grad.float().T @ x.detach()
    assert error(out.float(), exact[0]) < 0.05
    assert error(x.grad, exact[1]) < 0.08 and error(linear.weight.grad, exact[2]) < 0.08


def test_a_model_keeps_its_names_and_its_head() -> None:
    model = Transformer(CONFIG)
    before = dict(model.named_parameters())
    use_float8(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert sum(isinstance(module, Float8Projection) for module in model.modules()) == 7 * CONFIG.num_layers
    assert type(model.lm_head) is PlainProjection


def learn(model: Transformer, ids: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16), fusion("off"):
            loss = linear_cross_entropy(model.hidden(ids[:, :-1]), model.head_weight, ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_it_learns_as_in_bf16() -> None:
    usual = Transformer(CONFIG)
    usual.initialize(0)
    quick = copy.deepcopy(usual)
    use_float8(quick)
    ids = (torch.arange(8)[:, None] * 5 + torch.arange(32) ** 2) % 61
    expected, found = learn(usual, ids, 30), learn(quick, ids, 30)
    assert expected[-1] < expected[0] - 1.5
    assert found[0] == pytest.approx(expected[0], abs=0.01)
    assert found[-1] == pytest.approx(expected[-1], abs=0.15)
    assert found != expected


def test_odd_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 16, found a matrix of 64 x 40"):
        Float8Projection.of(40, 64)


def test_a_device_without_fp8_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a CUDA device of compute capability 8.9 or later.* runs on a CPU"):
        check_float8(torch.device("cpu"))
