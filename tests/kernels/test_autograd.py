"""Each fused kernel against the plain formula in fp32, for values and gradients, at the precision that bf16 allows."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.autograd import add_rms_norm, joint_linear, log_sum_exp, split_heads, swiglu
from model.kernels.jit import COMPILED
from model.network.rope import RopeScaling, apply_rope, rotation
from model.network.transformer import RMSNorm

pytestmark = pytest.mark.skipif(not COMPILED, reason="kernels need numba")
BF16 = 2.0**-8  # half a unit in the last place, relative


def close(found: Tensor, expected: Tensor) -> bool:
    return float(((found.float() - expected).norm() / expected.norm()).detach()) < BF16


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def check(fast: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Compare outputs and all gradients of two functions; the first gets its inputs in their own dtypes."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    wide = [x.detach().float().requires_grad_() for x in inputs]
    out, expected = fast(*leaves), plain(*wide)
    assert close(out, expected)
    grad = noise(*expected.shape, seed=9)
    gradients = torch.autograd.grad(out, leaves, grad.to(out.dtype))
    for found, wanted in zip(gradients, torch.autograd.grad(expected, wide, grad)):
        assert close(found, wanted)


@pytest.mark.parametrize("rows", [1, 37, 600])
@pytest.mark.parametrize("with_branch", [True, False])
def test_add_rms_norm(rows: int, with_branch: bool) -> None:
    norm = RMSNorm(48, 1e-6)
    x, branch, weight = noise(1, rows, 48), noise(1, rows, 48, seed=1).bfloat16(), noise(48, seed=2)

    def fast(x: Tensor, weight: Tensor, *branch: Tensor) -> Tensor:
        total, normed = add_rms_norm(x, branch[0] if branch else None, weight, norm.eps)
        return torch.cat((total, normed.float()), dim=-1)

    def plain(x: Tensor, weight: Tensor, *branch: Tensor) -> Tensor:
        total = x + branch[0] if branch else x
        normed = weight * total * torch.rsqrt(total.square().mean(-1, keepdim=True) + norm.eps)
        return torch.cat((total, normed), dim=-1)

    check(fast, plain, x, weight, *([branch] if with_branch else []))


def test_norm_without_use_of_the_stream() -> None:
    """The final norm's stream goes nowhere: its gradient is missing, not zero."""
    x, weight = noise(2, 5, 16).requires_grad_(), torch.ones(16, requires_grad=True)
    add_rms_norm(x, None, weight, 1e-6)[1].float().square().sum().backward()
    wide = x.detach().clone().requires_grad_()
    F.rms_norm(wide, (16,), eps=1e-6).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, wide.grad, atol=0.05, rtol=0.05)


def test_swiglu() -> None:
    def plain(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    check(swiglu, plain, (3 * noise(2, 70, 2 * 40)).bfloat16())


def test_swiglu_at_the_ends_of_the_range() -> None:
    gates = torch.tensor([-1e6, -200.0, -88.0, 0.0, 88.0, 200.0, 1e6])
    x = torch.cat((gates, torch.ones(7)))[None].bfloat16()
    assert close(swiglu(x)[:, 3:], F.silu(x[:, :7].float())[:, 3:])
    assert swiglu(x)[0, :3].abs().max() < 1e-30


def test_joint_linear() -> None:
    weights = [noise(n, 24, seed=n) for n in (8, 4, 12)]
    check(joint_linear, lambda x, *w: F.linear(x, torch.cat(w)), noise(2, 9, 24).bfloat16(), *weights)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("positions_by_row", [True, False])
def test_split_heads(qk_norm: bool, positions_by_row: bool) -> None:
    batch, seq, heads, kv_heads, dim = 2, 150, 4, 2, 16
    positions = (
        torch.arange(seq)[None] if not positions_by_row else torch.stack((torch.arange(seq), torch.arange(seq) % 9))
    )
    turn = rotation(positions, dim, 10000.0, RopeScaling())
    qkv = noise(batch, seq, (heads + 2 * kv_heads) * dim).bfloat16()
    norms = [1 + 0.1 * noise(dim, seed=3), 1 + 0.1 * noise(dim, seed=4)] if qk_norm else []

    def fast(qkv: Tensor, *norms: Tensor) -> Tensor:
        pair = (norms[0], norms[1]) if norms else None
        return torch.cat(split_heads(qkv, pair, turn.cos, turn.sin, 1e-6, heads), dim=1)

    def plain(qkv: Tensor, *norms: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(-1, (-1, dim)).split((heads, kv_heads, kv_heads), dim=2)
        if norms:
            q, k = F.rms_norm(q, (dim,), norms[0], 1e-6), F.rms_norm(k, (dim,), norms[1], 1e-6)
        return torch.cat((apply_rope(q, turn), apply_rope(k, turn), v), dim=2).transpose(1, 2)

    check(fast, plain, qkv, *norms)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_log_sum_exp_at_extremes(sign: float) -> None:
    logits = torch.stack((torch.full((40,), -3e38), torch.linspace(-1e4, 1e4, 40), -torch.rand(40), torch.zeros(40)))
    logits[3, 7] = sign * math.nan
    norms, found = log_sum_exp(logits.bfloat16(), torch.tensor([0, 39, 3, 2]))
    torch.testing.assert_close(norms[:3], logits[:3].bfloat16().float().logsumexp(-1), rtol=1e-5, atol=1e-5)
    assert norms[3].isnan()
    assert float(found[1]) == float(logits[1, 39].bfloat16())


def test_kernels_on_threads_give_the_same_bits() -> None:
    x, weight = noise(4, 300, 64), noise(64, seed=1)

    def run() -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        total, normed = add_rms_norm(leaves[0], None, leaves[1], 1e-6)
        out = swiglu(normed)
        return [out, *torch.autograd.grad((out.float().sum() + total.sum()), leaves)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        three = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three))
