"""INT8 products by the numbers: exact sums, errors against fp32, unbiased rounding, a model that learns with them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.kernels.autograd import swiglu
from model.kernels.dispatch import Fusion, fusion
from model.kernels.int8 import DITHERED
from model.kernels.jit import COMPILED
from model.network.head import linear_cross_entropy
from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from model.training.objectives import NextToken
from model.training.precision import int8_head, int8_matrix
from model.training.precision.int8 import Int8Projection, int8_linear, int8_mlp, use_int8
from model.training.precision.int8_head import Int8Products, quantize_softmax
from model.training.precision.int8_matrix import (
    add_transposed_product,
    has_vnni,
    product,
    quantize_columns,
    quantize_rows,
)
from tests.helpers.formulas import plain_linear_cross_entropy

CONFIG = ModelConfig(
    vocab_size=70, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=88,
    context_length=32,
)  # fmt: skip
FORMS = pytest.mark.parametrize("form", ["auto", "off"])  # of the kernels: compiled, and torch's own


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().float() - exact).norm() / exact.norm())


@contextmanager
def using(threads: int) -> Iterator[None]:
    """Let torch and the kernels use so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@FORMS
@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 300), columns=st.integers(1, 70), size=st.sampled_from([1e-20, 1.0, 1e20]))
def test_rounding_is_within_half_a_step(form: Fusion, rows: int, columns: int, size: float) -> None:
    x = (noise(rows, columns) * size).bfloat16()
    with fusion(form):
        by_row, row_scales = quantize_rows(x)
        by_column, column_scales = quantize_columns(x)
    wide = x.float()
    assert torch.equal(by_row.abs().amax(1).int(), torch.full((rows,), 127, dtype=torch.int32))
    assert torch.equal(by_column.abs().amax(0).int(), torch.full((columns,), 127, dtype=torch.int32))
    half = 0.5001  # the division rounds too
    assert ((by_row * row_scales[:, None] - wide).abs() <= half * row_scales[:, None]).all()
    assert ((by_column * column_scales - wide).abs() <= half * column_scales).all()


@FORMS
def test_factors_go_into_the_columns(form: Fusion) -> None:
    x, factors = noise(600, 20), torch.rand(600, generator=torch.Generator().manual_seed(1))
    with fusion(form):
        values, scales = quantize_columns(x, factors)
    assert ((values * scales - x.float() * factors[:, None]).abs() <= 0.5001 * scales).all()


@FORMS
@pytest.mark.parametrize("rows", [1, 37, 700])
def test_products_and_gradients_follow_the_formula(form: Fusion, rows: int) -> None:
    weights = [nn.Parameter(noise(size, 48, seed=size).float() / 7) for size in (56, 24)]
    x, grad = noise(rows, 48, seed=1).requires_grad_(), noise(rows, 80, seed=2)
    with fusion(form):
        out = int8_linear(x, *weights)
        gradients = torch.autograd.grad(out, (x, *weights), grad)
    joint = torch.cat([weight.detach() for weight in weights]).bfloat16()
    wide = x.detach().float()
    with fusion(form):
        by_row = [quantize_rows(matrix) for matrix in (x.detach(), joint, grad)]
        columns, column_scales = quantize_columns(joint)
        g_values, g_scales = by_row[2]
        x_columns, x_scales = quantize_columns(x.detach(), g_scales)
    q_x, q_w, g = (values * scales[:, None] for values, scales in by_row)
    torch.testing.assert_close(out.float(), q_x @ q_w.T, rtol=2**-8, atol=1e-3)
    torch.testing.assert_close(gradients[0].float(), g @ (columns * column_scales), rtol=2**-8, atol=1e-3)
    d_joint = g_values.float().T @ (x_columns * x_scales)
    torch.testing.assert_close(torch.cat(gradients[1:]), d_joint, rtol=1e-5, atol=1e-3)
    assert error(out, wide @ joint.float().T) < 0.015
    assert error(gradients[0], grad.float() @ joint.float()) < 0.015
    assert error(torch.cat(gradients[1:]), grad.float().T @ wide) < 0.015


def test_sums_are_exact_where_fp32_would_round(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.full((3, 5000), 127, dtype=torch.int8), torch.full((5000, 2), 127, dtype=torch.int8)
    a[:, 0] = 2
    expected = 127 * (4999 * 127 + 2)
    assert expected > 2**24 and expected % 2
    if has_vnni():
        assert (product(a, b) == expected).all()
    monkeypatch.setattr(int8_matrix, "has_vnni", lambda: False)
    found = product(a, b)
    assert (found != expected).all()  # an fp32 there is a multiple of 8
    assert found.float().allclose(torch.tensor(float(expected)), rtol=1e-4)


def test_sums_that_int32_cannot_hold() -> None:
    a, b = torch.full((2, 200_001), 127, dtype=torch.int8), torch.full((200_001, 3), -127, dtype=torch.int8)
    assert product(a, b).allclose(torch.tensor(-127.0 * 127 * 200_001), rtol=1e-4)


@FORMS
def test_zeros_stay_zeros_and_nan_is_seen(form: Fusion) -> None:
    weight = nn.Parameter(noise(24, 16).float())
    with fusion(form):
        assert not int8_linear(torch.zeros(300, 16, dtype=torch.bfloat16), weight).any()
        for bad in (float("nan"), float("inf")):
            x = noise(300, 16)
            x[7, 3] = bad
            out = int8_linear(x.requires_grad_(), weight)
            assert not torch.isfinite(out[7]).any() and torch.isfinite(out[8:]).all()
            assert not torch.isfinite(torch.autograd.grad(out, weight, torch.ones_like(out))[0]).all()


@FORMS
@pytest.mark.parametrize("logits_at_once", [100 * 64, 1 << 20])
def test_probabilities_are_rounded_without_bias(
    form: Fusion, logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of 4096 rows, each at another height, as in life: a likely token, and 98 that to the nearest are 0."""
    monkeypatch.setattr(int8_head, "LOGITS_AT_ONCE", logits_at_once)
    places = torch.arange(4096)
    x = torch.stack((torch.full_like(places, 127), places // 64, places % 64), dim=1).to(torch.int8)
    weight = torch.tensor([[0, 64, 1]] * 100, dtype=torch.int8)
    weight[5, 0] = 127
    x_scales, weight_scales = torch.full((4096,), 9 / 127**2), torch.ones(100)
    with fusion(form):
        values, *numbers = quantize_softmax((x, x_scales), (weight, weight_scales), torch.full((4096,), 7))
    logits = (x.float() @ weight.float().T) * x_scales[:, None]
    for number, exact in zip(numbers, (logits[:, 5], logits.logsumexp(1), logits[:, 7]), strict=True):
        torch.testing.assert_close(number, exact)
    mean, expected = values.float().mean(0), float(DITHERED) * (logits - logits[:, 5, None]).exp().mean(0)
    assert expected[0] < 1 / 50 and mean[7] == 0
    others = [j for j in range(100) if j not in (5, 7)]
    assert ((mean - expected)[others].abs() < 6 * (expected[0] / 4096).sqrt()).all()
    assert mean[others].mean() == pytest.approx(float(expected[others].mean()), rel=0.03)
    assert mean[5] == pytest.approx(float(expected[5]), rel=0.01)


@FORMS
@pytest.mark.parametrize("size", [1e-30, 1.0, 50.0])
def test_a_softmax_at_extremes(form: Fusion, size: float) -> None:
    """A label that has all of the probability or none, logits that are all alike, a vocabulary of two."""
    hidden, weight = noise(90, 32) * size, noise(2, 32, seed=1)
    for labels in (torch.zeros(90, dtype=torch.int64), torch.ones(90, dtype=torch.int64)):
        with fusion(form):
            x, w = quantize_rows(hidden.bfloat16()), quantize_rows(weight)
            values, highest, norms, found = quantize_softmax(x, w, labels)
        logits = ((x[0] * x[1][:, None].double()) @ (w[0] * w[1][:, None].double()).T).float()
        torch.testing.assert_close(highest, logits.gather(1, 1 - labels[:, None])[:, 0])
        torch.testing.assert_close(norms, logits.logsumexp(1))
        torch.testing.assert_close(found, logits.gather(1, labels[:, None])[:, 0])
        assert (values.gather(1, 1 - labels[:, None]) >= 126).all() and not values.gather(1, labels[:, None]).any()


@FORMS
@pytest.mark.parametrize("shape", [(16, 40, 32), (37, 5, 50), (1, 1, 1), (64, 300, 15)])
def test_a_transposed_product_is_added(form: Fusion, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    (a, scales), b = quantize_rows(noise(m, k)), quantize_rows(noise(k, n, seed=1))[0]
    found = torch.ones(n, m)
    with fusion(form):
        add_transposed_product(found, a, scales, b)
    torch.testing.assert_close(found, 1 + (a.float() @ b.float()).T * scales)


@pytest.mark.skipif(not COMPILED, reason="it is made of kernels")
@pytest.mark.parametrize("rows", [1, 37, 700])
@pytest.mark.parametrize("sums_at_once", [64 * 112, 1 << 20])
def test_an_mlp_at_once_is_the_mlp_in_steps(rows: int, sums_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_matrix, "CHUNK_SUMS", sums_at_once)
    gate, up, down = (nn.Parameter(noise(*shape, seed=seed).float() / 7)
                      for seed, shape in enumerate([(56, 48), (56, 48), (48, 56)]))  # fmt: skip
    x, grad = noise(2, rows, 48, seed=3).requires_grad_(), noise(2, rows, 48, seed=4)
    at_once = int8_mlp(x, gate, up, down)
    in_steps = int8_linear(swiglu(int8_linear(x, gate, up)), down)
    assert torch.equal(at_once, in_steps)
    gradients = (torch.autograd.grad(out, (x, gate, up, down), grad) for out in (at_once, in_steps))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@FORMS
@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_the_loss_and_its_gradients(form: Fusion, z_loss: float) -> None:
    hidden, weight = (3 * noise(2, 350, 64)).requires_grad_(), (noise(500, 64, seed=1) / 8).requires_grad_()
    labels = torch.randint(0, 500, (2, 350), generator=torch.Generator().manual_seed(2))
    labels[0, :9] = -100
    with fusion(form):
        loss = linear_cross_entropy(hidden, weight, labels, z_loss, products=Int8Products)
        found = torch.autograd.grad(loss, (hidden, weight))
    wide = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    exact = plain_linear_cross_entropy(*wide, labels, z_loss)
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)
    for gradient, expected in zip(found, torch.autograd.grad(exact, wide)):
        assert error(gradient, expected) < 0.03


@FORMS
@pytest.mark.parametrize("probability", [0.1, 0.9, 0.999])
def test_the_gradient_of_what_is_known_already(form: Fusion, probability: float) -> None:
    """It goes to 0 with what is missing to 1, and its error with it."""
    weight = (noise(1000, 64, seed=1) / 4).requires_grad_()
    labels = torch.arange(200) * 3
    hidden = weight.detach()[labels].float()
    logits = hidden @ weight.detach().float().T
    high = [float(torch.logit(torch.tensor(probability))) for _ in labels]
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    known = (hidden * ((torch.tensor(high) + others) / logits.gather(1, labels[:, None])[:, 0])[:, None]).bfloat16()
    known.requires_grad_()
    with fusion(form):
        loss = linear_cross_entropy(known, weight, labels, products=Int8Products)
        found = torch.autograd.grad(loss, (known, weight))
    wide = known.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    exact = torch.autograd.grad(plain_linear_cross_entropy(*wide, labels), wide)
    for gradient, expected in zip(found, exact):
        assert error(gradient, expected) < 0.05


@FORMS
def test_slices_and_nothing_at_all(form: Fusion) -> None:
    weight = nn.Parameter(noise(24, 16).float())
    wide = noise(5, 40)
    with fusion(form):
        assert torch.equal(int8_linear(wide[:, :16], weight), int8_linear(wide[:, :16].contiguous(), weight))
        empty = torch.zeros(2, 0, 16, dtype=torch.bfloat16, requires_grad=True)
        out = int8_linear(empty, weight)
        assert out.shape == (2, 0, 24)
        assert not torch.autograd.grad(out.sum(), weight)[0].any()
        head = noise(30, 16, seed=3)
        losses = [linear_cross_entropy(x, head, torch.arange(5), products=Int8Products)
                  for x in (wide[:, :16], wide[:, :16].contiguous())]  # fmt: skip
        assert torch.equal(*losses)
        assert linear_cross_entropy(wide[:, :16], head, torch.full((5,), -100), products=Int8Products) == 0


@pytest.mark.skipif(not (COMPILED and has_vnni()), reason="sums in fp32 depend on their order")
def test_bits_do_not_depend_on_threads() -> None:
    model = Transformer(CONFIG)
    use_int8(model)
    batch = next_tokens()

    def gradients(threads: int) -> list[Tensor]:
        model.initialize(0, output_projections="depth")
        model.zero_grad()
        with using(threads), torch.autocast("cpu", torch.bfloat16):
            NextToken(model)(batch)[0].backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(gradients(1), gradients(3), strict=True))


@pytest.mark.skipif(not COMPILED, reason="needs the compiled kernels")
@pytest.mark.parametrize("vocab_size", [500, 512])
def test_a_head_in_chunks_has_bits_that_do_not_depend_on_threads(
    vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two or three parts of 500 columns do not end where a tile of 16 does."""
    monkeypatch.setattr(int8_head, "CHUNK_PROBABILITIES", 64 * vocab_size)

    def gradient(threads: int) -> Tensor:
        weight = noise(vocab_size, 64, seed=1).float().requires_grad_()
        labels = torch.arange(300) % vocab_size
        with using(threads):
            linear_cross_entropy(noise(300, 64), weight, labels, products=Int8Products).backward()
        assert weight.grad is not None
        return weight.grad

    one = gradient(1)
    assert all(torch.equal(gradient(threads), one) for threads in (2, 3, 6))


def next_tokens() -> dict[str, Tensor]:
    ids = (torch.arange(40)[:, None] * 5 + torch.arange(33) ** 2) % 61
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "label_bytes": torch.ones(40)}


def test_a_model_keeps_its_names_and_is_judged_in_bf16() -> None:
    model = Transformer(CONFIG)
    model.initialize(0, output_projections="depth")
    nn.init.normal_(model.lm_head.weight)  # the first one's logits are all alike
    usual, before = copy.deepcopy(model), dict(model.named_parameters())
    use_int8(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert sum(isinstance(module, Int8Projection) for module in model.modules()) == 7 * CONFIG.num_layers
    batch = next_tokens()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for form in ("auto", "off"):
            with fusion(form):
                judged = [float(NextToken(m).eval()(batch)[0]) for m in (model, usual)]
                trained = float(NextToken(model).train()(batch)[0])
            assert judged[0] == judged[1] != trained


def learn(model: Transformer, steps: int, form: Fusion) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    objective, batch, losses = NextToken(model).train(), next_tokens(), []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16), fusion(form):
            loss = objective(batch)[0] / batch["labels"].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@FORMS
def test_it_learns_as_in_bf16(form: Fusion) -> None:
    usual = Transformer(CONFIG)
    usual.initialize(0)
    quick = copy.deepcopy(usual)
    use_int8(quick)
    expected, found = learn(usual, 30, form), learn(quick, 30, form)
    assert expected[-1] < expected[0] - 1.5
    assert found[0] == pytest.approx(expected[0], abs=0.01)
    assert found[-1] == pytest.approx(expected[-1], abs=0.15)
    assert found != expected


def test_a_single_row_is_as_good_as_many() -> None:
    """Tokens do not share scales in a forward pass."""
    linear = Int8Projection.of(16, 24)
    x = noise(40, 16)
    x[1] *= 1e4
    with torch.no_grad():
        assert torch.equal(linear(x)[:1], linear(x[:1]))
        assert error(linear(x), F.linear(x.float(), linear.weight)) < 0.015
