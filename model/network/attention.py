"""Causal attention, within documents if asked (intra-document causal masking), by a kernel chosen for the device.

On a CPU torch's own SDPA gains nothing from bf16, so there the default is ours: blocks of queries, one bf16 matmul
over the keys that a block can see, and a closed-form backward (2-3 times faster at 256-1024 tokens).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.kernels.block_attention import block_attention, document_starts

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

AttentionName = Literal["auto", "sdpa", "blocks", "flex"]
AttentionKernel = Callable[[Tensor, Tensor, Tensor, Any], Tensor]

# On an H200, 32 rows of 2,048, there and back: cuDNN 2.29 ms, flash 3.75 (docs/LOG.md, 2026-11-25).
_GPU_ORDER = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]  # fmt: skip
_selected: AttentionName = "auto"  # a plain global: torch.compile can guard on it, not on a ContextVar


def document_mask(document_ids: Tensor | None) -> "Tensor | BlockMask | None":
    """What `attention` is given for all layers of a batch, so that what a GPU's kernel needs is found once.

    document_ids: (batch, seq), of as many queries as keys.
    """
    if document_ids is None or document_ids.device.type != "cuda" or _selected not in ("auto", "flex"):
        return document_ids
    from model.network.flex import block_mask  # finding them takes 0.24 ms on an H200: once a batch, not a layer

    return block_mask(document_ids, document_ids.shape[1], document_ids.shape[1], document_ids.device)


def attention(q: Tensor, k: Tensor, v: Tensor, document_ids: "Tensor | BlockMask | None" = None) -> Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v over the visible keys: (batch, heads, queries, head_dim).

    q: (batch, heads, queries, head_dim); k, v: (batch, kv_heads, keys, head_dim), heads a multiple of kv_heads. The
    queries are the last `queries` positions of the keys. A query sees keys up to its own position and, given
    document_ids (batch, keys) or what `document_mask` made of them, only those of its own document: a run of equal ids.
    """
    name = _selected
    if name == "auto":
        name = _choose(q, k, document_ids)
    return ATTENTION[name](q, k, v, document_ids)


@contextmanager
def attention_kernel(name: AttentionName) -> Iterator[None]:
    """Use one kernel, whatever the device, inside the `with` block."""
    global _selected
    before, _selected = _selected, name
    try:
        yield
    finally:
        _selected = before


@contextmanager
def fastest_first(device: torch.device) -> Iterator[None]:
    """On a GPU have SDPA prefer cuDNN's kernel inside the `with` block.

    On an H200 it takes 0.6 of flash's time, forward and backward, at 2,048 tokens and heads of 64.
    """
    if device.type == "cuda":
        with sdpa_kernel(_GPU_ORDER, set_priority=True):
            yield
    else:
        yield


def _choose(q: Tensor, k: Tensor, document_ids: "Tensor | BlockMask | None") -> AttentionName:
    if q.device.type == "cuda":
        # Of whole rows cuDNN 2.29 ms, flex 2.96; documents of 800 bring flex to 2.42 (docs/LOG.md, 2026-11-25).
        return "sdpa" if document_ids is None else "flex"
    if torch.compiler.is_compiling():
        return "sdpa"  # the blocks of a packed batch depend on its values
    training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    # In fp32 SDPA is transformers' own kernel, so logits stay bit-equal.
    return "blocks" if q.dtype == torch.bfloat16 and training and q.shape[2] == k.shape[2] else "sdpa"


def visible(queries: int, keys: int, document_ids: Tensor | None, device: torch.device) -> Tensor:
    """Which keys each query sees: bool, (1 or batch, 1, queries, keys)."""
    positions = torch.arange(keys, device=device)
    mask = (positions[keys - queries :, None] >= positions)[None, None]
    if document_ids is None:
        return mask
    return mask & (positions >= document_starts(document_ids)[:, None, keys - queries :, None])


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor | None) -> Tensor:
    """torch's scaled_dot_product_attention."""
    grouped = q.shape[1] != k.shape[1]
    # is_causal lets the first query see the first key alone: right only where there are as many of both.
    if document_ids is None and q.shape[2] == k.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    # A single query is the last position and sees all keys.
    mask = None
    if document_ids is not None or q.shape[2] > 1:
        mask = visible(q.shape[2], k.shape[2], document_ids, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, document_ids: "Tensor | BlockMask | None") -> Tensor:
    """torch's FlexAttention, compiled: skips masked blocks of packed documents on a GPU (it has no CPU backward)."""
    if q.device.type != "cuda":
        raise ValueError(f"FlexAttention trains only on a CUDA device, got tensors on '{q.device}'; use 'blocks'.")
    from model.network.flex import attend, block_mask

    if document_ids is None or isinstance(document_ids, Tensor):
        return attend(q, k, v, block_mask(document_ids, q.shape[2], k.shape[2], q.device))
    return attend(q, k, v, document_ids)


ATTENTION: dict[str, AttentionKernel] = {
    "sdpa": sdpa_attention,
    "blocks": block_attention,
    "flex": flex_attention,
}
