"""A head whose matrix products are of INT8: logits, probabilities and both gradients of their cross-entropy."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.kernels import int8 as int8_kernels
from model.kernels.dispatch import bits, has_kernels, spread
from model.network.head import Products
from model.training.precision.int8_matrix import (
    add_transposed_product,
    product,
    quantize_columns,
    quantize_rows,
    scaled_product,
    slices,
)

# Probabilities held at a time, a byte each: more than bf16's logits, which are held in two bytes and in four. Best is
# all tokens of a step at once (docs/LOG.md, 2026-11-27).
CHUNK_PROBABILITIES = 1 << 25
LOGITS_AT_ONCE = 1 << 21  # as int32 sums, 8 MB: they stay in the cache until their softmax is made
DITHER = 1 << 16  # numbers that probabilities are rounded with, of which each row takes a window


class Int8Products(Products):
    """Those of a head in INT8.

    The gradient of a logit is its probability, less 1 at the label. That one is far larger than most, and near a
    probability of 1 a small difference: so it is left out of the INT8 row and subtracted by itself in fp32. All other
    probabilities are rounded stochastically, up or down and right on average: of those below 1/254 of the likeliest,
    rounding to the nearest would leave nothing, which cost 0.03 bits per byte (docs/LOG.md).
    """

    def __init__(self, weight: Tensor) -> None:
        # numpy pins the memory that it looks at, and FSDP2 frees that of its weights.
        super().__init__(weight.clone(memory_format=torch.contiguous_format))
        self._rows = quantize_rows(self.weight)
        self._columns = quantize_columns(self.weight)

    def positions(self) -> int:
        """As many as CHUNK_PROBABILITIES has room for."""
        return max(16, CHUNK_PROBABILITIES // len(self.weight))

    def walk(
        self, hidden: Tensor, labels: Tensor, z_loss: float, d_hidden: Tensor | None, d_weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        h = hidden.contiguous()
        d, highest, norms, found = quantize_softmax(quantize_rows(h), self._rows, labels)
        shrink = 1 + 2 * z_loss * norms
        scales = shrink * (highest - norms).exp() / float(int8_kernels.DITHERED)
        # Taken from INT8 instead, gradients are off by 9.9 times their size at a probability of 0.999; so by 0.03
        # (docs/LOG.md, 2026-11-27).
        missing = 1 - shrink * (found - norms).exp()
        if d_hidden is not None:
            scaled_product(d, scales, *self._columns, out=d_hidden)
            subtract_gathered(d_hidden, missing, self.weight, labels)
        if d_weight is not None:
            values, column_scales = quantize_columns(h, scales)
            add_transposed_product(d_weight, values.T, column_scales, d)
            subtract_scattered(d_weight, labels, missing, h)
        return norms, found


def quantize_softmax(
    x: tuple[Tensor, Tensor], weight: tuple[Tensor, Tensor], labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of logits = x @ weightᵀ, both as of `quantize_rows`, by row: the softmax in INT8, 0 at the label; its `highest`
    logit but the label's; log sum exp; the label's logit.

    x: (rows, dim), weight: (vocab, dim) -> (rows, vocab) and three times (rows,). INT8 values are
    DITHERED * exp(logits - highest) on average, rounded up as often as what is cut off is large.
    """
    count, vocab_size = len(labels), len(weight[0])
    values = torch.empty(count, vocab_size, dtype=torch.int8, device=labels.device)
    numbers = torch.empty(count, 3, device=labels.device)
    dither = _dither(max(DITHER, 2 * vocab_size))  # as many windows as tokens, at least
    for part in slices(count, LOGITS_AT_ONCE // vocab_size):
        sums = product(x[0][part], weight[0].T)
        if has_kernels(sums.device):
            rows = sums.numpy(), x[1][part].numpy(), weight[1].numpy(), bits(labels[part]), dither
            outputs = values[part].numpy(), numbers[part].numpy()
            spread(int8_kernels.quantize_softmax, len(sums), *rows, *outputs, smallest=16)
        else:
            logits = sums * x[1][part, None] * weight[1]
            values[part], numbers[part] = _plain_softmax(logits, labels[part], torch.from_numpy(dither))
    highest, norms, found = numbers.unbind(1)
    return values, highest, norms, found


def _plain_softmax(logits: Tensor, labels: Tensor, dither: Tensor) -> tuple[Tensor, Tensor]:
    count, width = logits.shape
    norms, at_label = logits.logsumexp(1), labels[:, None]
    others = logits.scatter(1, at_label, float(int8_kernels.LEAST))
    highest = others.amax(1)
    starts = (torch.arange(count) * 7919 + norms.abs().view(torch.int32).cpu()) % (len(dither) - width + 1)
    chances = dither[starts[:, None] + torch.arange(width)].to(logits.device)
    values = float(int8_kernels.DITHERED) * (others - highest[:, None]).exp()
    values = (values + chances).floor().scatter_(1, at_label, 0)
    return values.to(torch.int8), torch.stack((highest, norms, logits.gather(1, at_label)[:, 0]), dim=1)


def subtract_gathered(total: Tensor, factors: Tensor, rows: Tensor, indices: Tensor) -> None:
    """In place: total[i] -= factors[i] * rows[indices[i]], bf16."""
    if has_kernels(rows.device):
        spread(int8_kernels.subtract_gathered, len(total), bits(total), factors.numpy(), bits(rows), bits(indices))
    else:
        total -= factors[:, None] * rows[indices]


def subtract_scattered(total: Tensor, indices: Tensor, factors: Tensor, rows: Tensor) -> None:
    """In place, one after the other: total[indices[i]] -= factors[i] * rows[i]; total is fp32."""
    if has_kernels(rows.device):
        int8_kernels.subtract_scattered(bits(indices), factors.numpy(), bits(rows), total.numpy())
    else:
        total.index_add_(0, indices, factors[:, None] * rows.float(), alpha=-1)


@lru_cache(maxsize=2)
def _dither(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random(count, dtype=np.float32)  # always the same: runs repeat
