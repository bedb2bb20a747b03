"""Row-wise kernels on bf16 bits, compiled by numba: each reads its rows once where torch would make 5-10 passes.

bf16 is the upper half of an fp32, so arrays of it arrive as uint16 and are widened by a shift; all sums are in fp32.
Each kernel works on rows (or groups of rows) `start:stop`, so threads share the work and the bits never depend on
their number. `model/kernels/autograd.py` wraps them for autograd and holds the plain formulas beside them.
"""

import numpy as np
from numpy.typing import NDArray

from model.kernels.jit import fast_helper, fast_kernel
from model.kernels.scalars import F32, LOG2E, Bits, Floats, Ints, exp2, highest_of, narrow, sigmoid, widen

GROUP = 256  # rows whose weight gradients are summed together: fixed, so that the sum's order is


@fast_kernel
def add_norm(
    x: Floats,
    branch: Bits,
    weight: Floats,
    eps: float,
    total: Floats,
    normed: Bits,
    inverse: Floats,
    start: int,
    stop: int,
) -> None:
    """total = x + branch; normed = weight * total * inverse, inverse = 1 / rms(total). An empty branch is zero."""
    width = x.shape[1]
    for i in range(start, stop):
        row, out, normal = x[i], total[i], normed[i]
        squares = F32(0.0)
        if branch.shape[0]:
            added = branch[i]
            for j in range(width):
                value = row[j] + widen(added[j])
                out[j] = value
                squares += value * value
        else:
            for j in range(width):
                out[j] = row[j]
                squares += row[j] * row[j]
        r = F32(1.0) / np.sqrt(squares / F32(width) + F32(eps))
        inverse[i] = r  # backward needs it again
        for j in range(width):
            normal[j] = narrow(out[j] * r * weight[j])


@fast_kernel
def add_norm_backward(
    d_total: Floats,
    d_normed: Bits,
    total: Floats,
    weight: Floats,
    inverse: Floats,
    d_x: Floats,
    d_branch: Bits,
    d_weight: Floats,
    start: int,
    stop: int,
) -> None:
    """d_x = d_total + the norm's gradient (also rounded into d_branch); d_weight: one row for each GROUP of rows."""
    width = total.shape[1]
    # By group and not by thread, so that the sum over rows has one order whatever the number of threads.
    for group in range(start, stop):
        weights = d_weight[group]
        for i in range(group * GROUP, min((group + 1) * GROUP, total.shape[0])):
            row, d_row, out, r = total[i], d_normed[i], d_x[i], inverse[i]
            dot = F32(0.0)
            for j in range(width):
                d = widen(d_row[j])
                hat = row[j] * r
                weights[j] += d * hat
                dot += d * weight[j] * hat
            dot /= F32(width)
            if d_total.shape[0]:
                above = d_total[i]
                for j in range(width):
                    out[j] = above[j] + r * (widen(d_row[j]) * weight[j] - row[j] * r * dot)
            else:
                for j in range(width):
                    out[j] = r * (widen(d_row[j]) * weight[j] - row[j] * r * dot)
            if d_branch.shape[0]:
                rounded = d_branch[i]
                for j in range(width):
                    rounded[j] = narrow(out[j])


@fast_kernel
def rotate_heads(
    x: Bits,
    offset: int,
    weight: Floats,
    eps: float,
    cos: Floats,
    sin: Floats,
    out: NDArray[np.uint16],
    start: int,
    stop: int,
) -> None:
    """Norm (unless `weight` is empty) and rotate the heads at columns `offset...` of x; out: (batch, heads, seq, dim).

    x: (batch * seq, columns); cos, sin: (batch * seq or seq, dim / 2), one row for each position.
    """
    _, heads, seq, dim = out.shape
    half = dim // 2
    for i in range(start, stop):
        b, t = i // seq, i % seq
        c, s = cos[i % cos.shape[0]], sin[i % cos.shape[0]]
        for h in range(heads):
            row = x[i, offset + h * dim : offset + (h + 1) * dim]
            to = out[b, h, t]
            if weight.shape[0]:
                squares = F32(0.0)
                for j in range(dim):
                    squares += widen(row[j]) * widen(row[j])
                r = F32(1.0) / np.sqrt(squares / F32(dim) + F32(eps))
                for j in range(half):
                    a = widen(row[j]) * r * weight[j]
                    z = widen(row[j + half]) * r * weight[j + half]
                    to[j] = narrow(a * c[j] - z * s[j])
                    to[j + half] = narrow(z * c[j] + a * s[j])
            else:
                for j in range(half):
                    a, z = widen(row[j]), widen(row[j + half])
                    to[j] = narrow(a * c[j] - z * s[j])
                    to[j + half] = narrow(z * c[j] + a * s[j])


@fast_kernel
def rotate_heads_backward(
    d_out: NDArray[np.uint16],
    x: Bits,
    offset: int,
    weight: Floats,
    eps: float,
    cos: Floats,
    sin: Floats,
    d_x: Bits,
    d_weight: Floats,
    start: int,
    stop: int,
) -> None:
    """Gradient of `rotate_heads` into the same columns of d_x; d_weight: one row for each GROUP of rows."""
    _, heads, seq, dim = d_out.shape
    half = dim // 2
    g = np.empty(dim, np.float32)
    for group in range(start, stop):
        for i in range(group * GROUP, min((group + 1) * GROUP, x.shape[0])):
            b, t = i // seq, i % seq
            c, s = cos[i % cos.shape[0]], sin[i % cos.shape[0]]
            for h in range(heads):
                row, out = x[i, offset + h * dim : offset + (h + 1) * dim], d_out[b, h, t]
                to = d_x[i, offset + h * dim : offset + (h + 1) * dim]
                for j in range(half):
                    a, z = widen(out[j]), widen(out[j + half])
                    g[j] = a * c[j] + z * s[j]
                    g[j + half] = z * c[j] - a * s[j]
                if weight.shape[0]:
                    norm_head_backward(row, weight, eps, g, to, d_weight[group])
                else:
                    for j in range(dim):
                        to[j] = narrow(g[j])


@fast_helper
def norm_head_backward(row: Bits, weight: Floats, eps: float, g: Floats, to: Bits, d_weight: Floats) -> None:
    """RMSNorm's gradient for one head: `g` arrives, `to` receives the input's and `d_weight` gains the weight's."""
    dim = len(g)
    squares = F32(0.0)
    dot = F32(0.0)
    for j in range(dim):
        value = widen(row[j])
        squares += value * value
        dot += g[j] * weight[j] * value
    r = F32(1.0) / np.sqrt(squares / F32(dim) + F32(eps))
    dot *= r / F32(dim)
    for j in range(dim):
        hat = widen(row[j]) * r
        d_weight[j] += g[j] * hat
        to[j] = narrow(r * (g[j] * weight[j] - hat * dot))


@fast_kernel
def swiglu(x: Bits, out: Bits, start: int, stop: int) -> None:
    """out = silu(gate) * up, where a row of x is gate followed by up."""
    for i in range(start, stop):
        swiglu_row(x[i], out[i])


@fast_helper
def swiglu_row(row: Bits, to: Bits) -> None:
    """to = silu(gate) * up of one row."""
    width = len(to)
    for j in range(width):
        gate = widen(row[j])
        to[j] = narrow(gate * sigmoid(gate) * widen(row[j + width]))


@fast_kernel
def swiglu_backward(d_out: Bits, x: Bits, d_x: Bits, start: int, stop: int) -> None:
    """Gradient of `swiglu`; silu' = s + silu * (1 - s)."""
    for i in range(start, stop):
        swiglu_backward_row(d_out[i], x[i], d_x[i])


@fast_helper
def swiglu_backward_row(d: Bits, row: Bits, to: Bits) -> None:
    """to = d times the derivative of `swiglu_row` at row."""
    width = len(d)
    for j in range(width):
        gate, up, g = widen(row[j]), widen(row[j + width]), widen(d[j])
        s = sigmoid(gate)
        silu = gate * s
        to[j] = narrow(g * up * (s + silu * (F32(1.0) - s)))
        to[j + width] = narrow(g * silu)


@fast_kernel
def log_sum_exp(logits: Bits, labels: Ints, norms: Floats, found: Floats, start: int, stop: int) -> None:
    """norms = log sum exp(logits) and found = logit of the label, by row."""
    width = logits.shape[1]
    for i in range(start, stop):
        row = logits[i]
        highest = highest_of(row)
        total = F32(0.0)
        for j in range(width):
            total += exp2((widen(row[j]) - highest) * LOG2E)
        norms[i] = highest + np.log(total)
        found[i] = widen(row[labels[i]])


@fast_kernel
def softmax_gradient(
    logits: Bits, labels: Ints, norms: Floats, scale: Floats, shrink: Floats, start: int, stop: int
) -> None:
    """In place: logits become scale * (shrink * softmax - onehot(label)), by row."""
    width = logits.shape[1]
    for i in range(start, stop):
        row, norm, factor = logits[i], norms[i], scale[i] * shrink[i]
        # Before the loop overwrites the label's logit, and rounded once.
        at_label = factor * exp2((widen(row[labels[i]]) - norm) * LOG2E) - scale[i]
        for j in range(width):
            row[j] = narrow(factor * exp2((widen(row[j]) - norm) * LOG2E))
        row[labels[i]] = narrow(at_label)


@fast_kernel
def masked_softmax(scores: Bits, scale: float, begins: Ints, ends: Ints, heads: int, start: int, stop: int) -> None:
    """In place: softmax(scale * scores) over the columns begins:ends of each row, 0 elsewhere.

    Rows come as (batch, heads, queries); begins and ends: (batch or 1) * queries, shared by the heads.
    """
    queries_of_batch = ends.shape[1]
    width = scores.shape[1]
    factor = F32(scale) * LOG2E  # from here on in base 2, since exp2 is what vectorises
    for i in range(start, stop):
        b = (i // (heads * queries_of_batch)) % ends.shape[0]
        t = i % queries_of_batch
        begin, end = begins[b, t], ends[b, t]
        row = scores[i]
        seen = row[begin:end]
        highest = highest_of(seen)  # before scaling, which is positive and keeps the order
        total = F32(0.0)
        for j in range(len(seen)):
            total += exp2((widen(seen[j]) - highest) * factor)
        inverse = F32(1.0) / total
        for j in range(len(seen)):
            seen[j] = narrow(exp2((widen(seen[j]) - highest) * factor) * inverse)
        row[:begin] = 0  # the product with the values reads whole rows
        row[end:width] = 0


@fast_kernel
def softmax_backward(d: Bits, probabilities: Bits, scale: float, start: int, stop: int) -> None:
    """In place: d becomes scale * p * (d - sum(p * d)), the gradient of the scores before scaling."""
    width = d.shape[1]
    for i in range(start, stop):
        row, p = d[i], probabilities[i]
        dot = F32(0.0)
        for j in range(width):
            dot += widen(p[j]) * widen(row[j])
        for j in range(width):
            row[j] = narrow(F32(scale) * widen(p[j]) * (widen(row[j]) - dot))
