"""The head and its cross-entropy against torch's own functions, with several chunks of positions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.head import IGNORED, linear_cross_entropy, token_log_probs
from tests.helpers.formulas import plain_linear_cross_entropy


def problem(vocab: int = 50, dim: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 41, dim, generator=stream).to(dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=stream).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (3, 41), generator=stream)
    labels[0, :7] = IGNORED
    labels[2, -3:] = IGNORED
    return hidden, weight, labels


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one short."""
    monkeypatch.setattr("model.network.head.CHUNK_LOGITS", {"cpu": 50 * 32})


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_linear_cross_entropy_equals_torch(z_loss: float, reduction: str) -> None:
    hidden, weight, labels = problem()
    fused = linear_cross_entropy(hidden, weight, labels, z_loss, reduction)
    plain = plain_linear_cross_entropy(hidden, weight, labels, z_loss, reduction)
    torch.testing.assert_close(fused, plain)
    for found, wanted in zip(*(torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (fused, plain))):
        torch.testing.assert_close(found, wanted)


def test_plain_is_torch_cross_entropy() -> None:
    hidden, weight, labels = problem()
    expected = F.cross_entropy((hidden @ weight.T).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(plain_linear_cross_entropy(hidden, weight, labels), expected)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_gradcheck(z_loss: float) -> None:
    hidden, weight, labels = problem(vocab=7, dim=3, dtype=torch.float64)
    part = (hidden[:1, 4:10].detach().requires_grad_(), weight)
    target = labels[:1, 4:10]
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, target, z_loss), part)
    assert torch.autograd.gradcheck(lambda h, w: token_log_probs(h, w, target), part)


def test_bf16_is_as_close_to_fp32_as_autocast() -> None:
    hidden, weight, labels = problem(vocab=300, dim=64)
    exact = torch.autograd.grad(plain_linear_cross_entropy(hidden, weight, labels), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        fused = linear_cross_entropy(hidden, weight, labels)
        plain = plain_linear_cross_entropy(hidden, weight, labels)
    assert fused.dtype == torch.float32
    assert abs(float((fused - plain).detach())) < 2e-3
    for loss in (fused, plain):
        for found, wanted in zip(torch.autograd.grad(loss, (hidden, weight)), exact):
            assert found.dtype == torch.float32
            assert float((found - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_what_needs_a_gradient_gets_one(frozen: str) -> None:
    hidden, weight, labels = problem()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels).backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


def test_without_labels_the_loss_is_zero() -> None:
    hidden, weight, labels = problem()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_labels_of_another_shape_are_refused() -> None:
    hidden, weight, labels = problem()
    with pytest.raises(ValueError, match=r"\(3, 41\).*\(3, 40\)"):
        linear_cross_entropy(hidden, weight, labels[:, 1:])


@pytest.mark.parametrize("autocast", [False, True])
def test_nan_is_not_hidden(autocast: bool) -> None:
    hidden, weight, labels = problem()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = linear_cross_entropy(
            hidden.detach().clone().index_fill_(1, torch.tensor([20]), math.nan), weight, labels
        )
    assert loss.isnan()


@pytest.mark.parametrize("autocast", [False, True])
def test_token_log_probs_equal_log_softmax(autocast: bool) -> None:
    hidden, weight, labels = problem()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = token_log_probs(hidden, weight, labels)
    logits = hidden @ weight.T
    expected = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORED)
    tolerance = {"atol": 0.08, "rtol": 0.02} if autocast else {}
    torch.testing.assert_close(found, expected, **tolerance)
    scale = torch.randn(labels.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(*(torch.autograd.grad(x, (hidden, weight), scale) for x in (found, expected))):
        assert float((a - b).norm() / b.norm()) < (0.02 if autocast else 1e-5)
