"""silu by blocks: torch's own values and gradients, to the bit, on any number of threads."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.silu import BLOCK, silu
from tests.helpers.processor import using


def value_and_gradient(threads: int, form, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    with using(threads):
        y = form(x)
        y.backward(d)
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(477, 176), (BLOCK,), (BLOCK + 1,), (3, 7, 5001), (5, 3)])
def test_bits_are_those_of_torch_with_one_thread(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, d = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = value_and_gradient(1, F.silu, x, d)
    for threads in (1, 2, 3, 5):
        found = value_and_gradient(threads, silu, x, d)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]), threads


def test_other_layouts() -> None:
    """A transposed input, and a gradient that is one number for all."""
    x = torch.randn(300, 400, generator=torch.Generator().manual_seed(0)).T.requires_grad_()
    with using(2):
        silu(x).sum().backward()
    expected = x.detach().clone().requires_grad_()
    F.silu(expected).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode) -> None:
    x = torch.randn(3, BLOCK, generator=torch.Generator().manual_seed(0))
    with mode(), using(2):
        found = silu(x * 1)
    with using(1):
        assert torch.equal(found, F.silu(x))
