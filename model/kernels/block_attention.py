"""Causal attention on a CPU by blocks of queries, with a backward pass in closed form (FlashAttention's formulas).

A block of queries meets only the keys from the start of its earliest document to its own end, in one matmul over all
rows and heads; its probabilities are kept for the backward pass, where dS = P * (dP - rowsum(dO * O)). Query heads
that share a key head are stacked into the rows of one product, so keys and values are never repeated.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.kernels.autograd import masked_softmax, softmax_backward

QUERY_BLOCK = 128  # queries of one block


@dataclass(frozen=True)
class _Span:
    """Queries `start:stop` and the keys `first:stop` that they may see."""

    start: int
    stop: int
    first: int


def block_attention(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor | None) -> Tensor:
    """As `attention.attention`, for as many queries as keys."""
    starts = None if document_ids is None else document_starts(document_ids)
    out: Tensor = _BlockAttention.apply(q, k, v, starts)  # type: ignore[no-untyped-call]
    return out


def document_starts(document_ids: Tensor) -> Tensor:
    """Position of the first token of each token's document, (batch, seq); a document is a run of equal ids."""
    positions = torch.arange(document_ids.shape[1], device=document_ids.device)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return torch.where(begins, positions, 0).cummax(dim=1).values


def _spans(length: int, starts: Tensor | None) -> list[_Span]:
    spans = []
    earliest = None if starts is None else starts.amin(dim=0).tolist()  # of all rows: one product serves them all
    for start in range(0, length, QUERY_BLOCK):
        first = 0 if earliest is None else earliest[start] // 16 * 16
        spans.append(_Span(start, min(start + QUERY_BLOCK, length), first))
    return spans


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
        batch, heads, length, dim = q.shape
        kv_heads = k.shape[1]
        q = q.reshape(batch * kv_heads, heads // kv_heads, length, dim)
        k, v = (x.reshape(batch * kv_heads, length, dim) for x in (k, v))
        out = torch.empty(batch, length, heads, dim, dtype=q.dtype, device=q.device)
        spans = _spans(length, starts)
        kept = []
        for span in spans:
            seen = slice(span.first, span.stop)
            scores = torch.bmm(_rows(q, span), k[:, seen].transpose(1, 2))
            begins, ends = _visible_keys(span, starts, q.device)
            probabilities = masked_softmax(scores, 1 / math.sqrt(dim), begins, ends, heads)
            mixed = torch.bmm(probabilities, v[:, seen]).view(batch, heads, -1, dim)
            out[:, span.start : span.stop] = mixed.transpose(1, 2)
            kept.append(probabilities)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.spans = spans
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        dim = q.shape[-1]
        by_group = grad.to(q.dtype).reshape(q.shape)
        wide = torch.promote_types(q.dtype, torch.float32)  # blocks add up into keys: bf16 sums would lose bits
        # A query lies in one block, while a key is met by all blocks after it.
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for span, probabilities in zip(ctx.spans, kept):
            seen = slice(span.first, span.stop)
            rows, d_rows = _rows(q, span), _rows(by_group, span)
            dv[:, seen] += torch.bmm(probabilities.transpose(1, 2), d_rows)
            d_probabilities = torch.bmm(d_rows, v[:, seen].transpose(1, 2))
            d_scores = softmax_backward(d_probabilities, probabilities, 1 / math.sqrt(dim))
            dq[:, :, span.start : span.stop] = torch.bmm(d_scores, k[:, seen]).view(*q.shape[:2], -1, dim)
            dk[:, seen] += torch.bmm(d_scores.transpose(1, 2), rows)
        batch, _, length, _ = grad.shape
        shape = (batch, -1, length, dim)
        return dq.view(grad.shape), dk.to(k.dtype).view(shape), dv.to(v.dtype).view(shape), None


def _rows(x: Tensor, span: _Span) -> Tensor:
    """The span's positions of all heads of a group, stacked: (batch * kv_heads, group * queries, dim)."""
    return x[:, :, span.start : span.stop].reshape(x.shape[0], -1, x.shape[-1])


def _visible_keys(span: _Span, starts: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """First visible key and the one past the last for each query, counted from span.first: (batch or 1, queries)."""
    ends = torch.arange(span.start + 1, span.stop + 1, device=device)[None] - span.first
    if starts is None:
        return torch.zeros_like(ends), ends
    begins = starts[:, span.start : span.stop] - span.first
    return begins.contiguous(), ends.expand_as(begins).contiguous()  # the kernel reads them as they lie
