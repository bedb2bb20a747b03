"""Every attention kernel against the fp32 formula: values, gradients, document masks, odd lengths, shared key heads."""

import pytest
import torch
from torch import Tensor

from model.kernels.block_attention import block_attention, document_starts
from model.kernels.dispatch import fusion
from model.network.attention import ATTENTION, attention, attention_kernel, flex_attention
from tests.helpers.formulas import plain_attention

KERNELS = {**ATTENTION, "plain": plain_attention}


def inputs(heads: int, kv_heads: int, length: int, dim: int = 16, batch: int = 2, seed: int = 0) -> list[Tensor]:
    stream = torch.Generator().manual_seed(seed)
    sizes = (heads, kv_heads, kv_heads)
    return [torch.randn(batch, length, n, dim, generator=stream).transpose(1, 2) for n in sizes]


def documents(length: int, batch: int = 2) -> Tensor:
    """Rows of documents of uneven lengths; the last tokens of row 0 are padding, a document of its own."""
    ids = (torch.rand(batch, length, generator=torch.Generator().manual_seed(1)) < 6 / length).long().cumsum(1)
    ids[0, -5:] = -1
    return ids


def with_gradients(kernel: str, qkv: list[Tensor], ids: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.to(dtype).detach().requires_grad_() for x in qkv]
    out = KERNELS[kernel](*leaves, ids)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
@pytest.mark.parametrize("length", [1, 7, 128, 129, 300])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_formula_in_fp32(kernel: str, length: int, heads: int, kv_heads: int, masked: bool) -> None:
    ids = documents(length) if masked else None
    qkv = inputs(heads, kv_heads, length)
    expected = with_gradients("plain", qkv, ids, torch.float32)
    for found, wanted in zip(with_gradients(kernel, qkv, ids, torch.float32), expected):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("choice", ["auto", "off"])
@pytest.mark.parametrize("length", [7, 129, 300])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_bf16_blocks_are_as_close_to_fp32_as_bf16_allows(choice, length, heads, kv_heads, masked) -> None:
    ids = documents(length) if masked else None
    qkv = [x.bfloat16().float() for x in inputs(heads, kv_heads, length, dim=32)]
    expected = with_gradients("plain", qkv, ids, torch.float32)
    with fusion(choice):
        found = with_gradients("blocks", qkv, ids, torch.bfloat16)
    assert max(relative_error(a, b) for a, b in zip(found, expected)) < 0.01


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_of_the_closed_form_backward(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.kernels.block_attention.QUERY_BLOCK", 3)
    leaves = [x.double().requires_grad_() for x in inputs(4, 2, 8, dim=4)]
    ids = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [5, 5, 5, 5, 5, 5, 9, 9]]) if masked else None
    assert torch.autograd.gradcheck(lambda q, k, v: block_attention(q, k, v, ids), leaves)


@pytest.mark.parametrize("kernel", ["plain", "sdpa", "blocks"])
def test_documents_do_not_see_each_other(kernel: str) -> None:
    q, k, v = inputs(4, 2, 200)
    ids = torch.cat((torch.zeros(2, 90), torch.ones(2, 110)), dim=1).long()
    together = KERNELS[kernel](q, k, v, ids)
    apart = [plain_attention(q[:, :, s], k[:, :, s], v[:, :, s], None) for s in (slice(0, 90), slice(90, 200))]
    torch.testing.assert_close(together, torch.cat(apart, dim=2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
def test_fewer_queries_are_the_last_positions(kernel: str) -> None:
    q, k, v = inputs(4, 2, 20)
    ids = documents(20)
    for mask in (None, ids):
        whole = plain_attention(q, k, v, mask)
        for count in (1, 6):
            part = KERNELS[kernel](q[:, :, -count:], k, v, mask)
            torch.testing.assert_close(part, whole[:, :, -count:], atol=1e-5, rtol=1e-5)


def test_document_starts_are_those_of_runs() -> None:
    ids = torch.tensor([[3, 3, 1, 1, 1, 3], [0, 1, 2, 2, -1, -1]])
    assert document_starts(ids).tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 2, 2, 4, 4]]


def test_kernel_is_switched_inside_the_block_only() -> None:
    qkv = [x.bfloat16().requires_grad_() for x in inputs(4, 4, 8)]
    assert "BlockAttention" in type(attention(*qkv).grad_fn.next_functions[0][0]).__name__ or "BlockAttention" in str(
        attention(*qkv).grad_fn
    )
    with attention_kernel("sdpa"):
        assert "BlockAttention" not in str(attention(*qkv).grad_fn)
    with torch.no_grad():
        assert attention(*qkv).grad_fn is None


def test_nan_is_not_hidden() -> None:
    q, k, v = (x.bfloat16() for x in inputs(2, 2, 8))
    q[0, 0, 3, 0] = float("nan")
    assert bool(block_attention(q, k, v, None)[0, 0, 3].isnan().all())


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused only without a GPU")
def test_flex_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="CUDA"):
        flex_attention(*inputs(2, 2, 8), None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
@pytest.mark.parametrize("masked", [False, True])
def test_gpu_kernels_equal_the_formula(kernel: str, masked: bool) -> None:
    qkv = [x.bfloat16().float() for x in inputs(4, 2, 256, dim=64)]
    ids = documents(256) if masked else None
    expected = with_gradients("plain", qkv, ids, torch.float32)
    moved = [x.cuda() for x in qkv]
    leaves = [x.bfloat16().detach().requires_grad_() for x in moved]
    out = ATTENTION[kernel](*leaves, None if ids is None else ids.cuda())
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).bfloat16().cuda()
    found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    assert max(relative_error(a.cpu(), b) for a, b in zip(found, expected)) < 0.01
