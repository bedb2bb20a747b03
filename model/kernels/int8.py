"""Passes that turn bf16 into INT8 with its scales and int32 sums back into bf16, each reading its rows once.

As in kernels/rows.py bf16 arrives as uint16, and threads share rows `start:stop` without the bits depending on their
number: of a maximum the order does not matter. A NaN or infinity makes its scale, and so all that it scales, NaN.
"""

import numpy as np
from numpy.typing import NDArray

from model.kernels.jit import fast_helper, fast_kernel
from model.kernels.rows import GROUP, swiglu_backward_row, swiglu_row
from model.kernels.scalars import F32, LOG2E, Bits, Floats, Ints, exp2, narrow, widen

Bytes = NDArray[np.int8]
Sums = NDArray[np.int32]

LARGEST = F32(127.0)  # codes are symmetric: -128 stays unused
DITHERED = F32(126.99)  # plus less than 1 rounds down to 127 at most
SMALLEST = F32(1e-30)  # stands for the maximum of zeros
TILE = 16  # fp32 numbers of a cache line
LEAST = F32(-3e38)  # stands for the logit of a label that is left out


@fast_helper
def rounded(value: np.float32) -> np.int8:
    """To the nearest integer, halves up."""
    return np.int8(np.int32(np.floor(value + F32(0.5))))


@fast_helper
def magnitude(value: np.float32) -> np.int32:
    """|value| as an integer that sorts as it does, NaN above infinity: its maximum vectorises and keeps NaN."""
    return np.int32(F32(value).view(np.int32) & np.int32(0x7FFFFFFF))


@fast_helper
def ordered(bits: np.int32) -> np.int32:
    """What `model.kernels.scalars.ordered` is for bf16, for fp32."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@fast_kernel
def quantize_rows(x: Bits, values: Bytes, scales: Floats, start: int, stop: int) -> None:
    """x ≈ values * scales, one scale for each row."""
    for i in range(start, stop):
        scales[i] = quantize_row(x[i], values[i])


@fast_helper
def quantize_row(row: Bits, to: Bytes) -> np.float32:
    """row ≈ to * the scale returned."""
    peak = np.int32(0)
    for j in range(len(row)):
        peak = max(peak, np.int32(row[j] & np.uint16(0x7FFF)))  # sorts as the magnitude does, and vectorises
    top = widen(np.uint16(peak))
    top = SMALLEST if top < SMALLEST else top  # NaN is not less, and stays
    inverse = LARGEST / top
    for j in range(len(row)):
        to[j] = rounded(widen(row[j]) * inverse)
    return F32(top / LARGEST)


@fast_kernel
def column_peaks(x: Bits, factors: Floats, peaks: Sums, start: int, stop: int) -> None:
    """The `magnitude` of the largest factors * x in each column; a row of peaks for each GROUP of rows of x."""
    # A peak by group, whose maximum is taken outside: threads share no row, and a maximum needs no order.
    for group in range(start, stop):
        found = peaks[group]
        for i in range(group * GROUP, min((group + 1) * GROUP, x.shape[0])):
            row, factor = x[i], factors[i]
            for j in range(len(row)):
                found[j] = max(found[j], magnitude(widen(row[j]) * factor))


@fast_kernel
def quantize_columns(x: Bits, factors: Floats, inverses: Floats, values: Bytes, start: int, stop: int) -> None:
    """values = factors * x * inverses, rounded; factors go by row, inverses by column."""
    for i in range(start, stop):
        row, to, factor = x[i], values[i], factors[i]
        for j in range(len(row)):
            to[j] = rounded(widen(row[j]) * factor * inverses[j])


@fast_kernel
def quantize_softmax(
    sums: Sums,
    row_scales: Floats,
    column_scales: Floats,
    labels: Ints,
    dither: Floats,
    values: Bytes,
    numbers: Floats,
    start: int,
    stop: int,
) -> None:
    """values = DITHERED * exp(logits - highest) by row, 0 at the label, rounded up as often as what is cut is large.

    numbers: by row the greatest logit but the label's, log sum exp of all, the label's logit.
    """
    width = sums.shape[1]
    windows = len(dither) - width + 1
    powers = np.empty(width, np.float32)
    for i in range(start, stop):
        row, to, scale, label = sums[i], values[i], row_scales[i], labels[i]
        for j in range(width):
            powers[j] = F32(row[j]) * scale * column_scales[j]
        at_label = powers[label]
        powers[label] = LEAST  # out of the maximum too: beside a label that is certain all others would round to 0
        best = ordered(F32(powers[0]).view(np.int32))
        for j in range(width):
            best = max(best, ordered(F32(powers[j]).view(np.int32)))
        top: np.float32 = np.int32(ordered(best)).view(np.float32)
        total = F32(0.0)
        for j in range(width):
            power = exp2((powers[j] - top) * LOG2E)
            powers[j] = power
            total += power
        norm = np.logaddexp(top + np.log(total), at_label)  # of all logits again, without overflow
        numbers[i, 0], numbers[i, 1], numbers[i, 2] = top, norm, at_label
        # The norm is another one in each row and step, as good as chance, and the same when a step is made again.
        # A prime, so that rows of equal norms still begin at places of their own.
        chances = dither[(i * 7919 + magnitude(norm)) % windows :]
        for j in range(width):
            to[j] = np.int8(np.int32(DITHERED * powers[j] + chances[j]))  # neither is negative
        to[label] = 0


@fast_kernel
def scale_sums(sums: Sums, row_scales: Floats, column_scales: Floats, out: Bits, start: int, stop: int) -> None:
    """out = sums * row_scales * column_scales."""
    for i in range(start, stop):
        scale_row(sums[i], row_scales[i], column_scales, out[i])


@fast_helper
def scale_row(sums: Sums, scale: np.float32, column_scales: Floats, to: Bits) -> None:
    """to = sums * scale * column_scales of one row."""
    for j in range(len(sums)):
        to[j] = narrow(F32(sums[j]) * scale * column_scales[j])


@fast_kernel
def swiglu_of_sums(
    sums: Sums,
    row_scales: Floats,
    column_scales: Floats,
    x: Bits,
    out: Bits,
    values: Bytes,
    scales: Floats,
    start: int,
    stop: int,
) -> None:
    """`scale_sums` to x, `swiglu` of that to out, `quantize_rows` of that, a row after the other."""
    for i in range(start, stop):
        scale_row(sums[i], row_scales[i], column_scales, x[i])
        swiglu_row(x[i], out[i])
        scales[i] = quantize_row(out[i], values[i])


@fast_kernel
def swiglu_backward_of_sums(
    sums: Sums,
    row_scales: Floats,
    column_scales: Floats,
    x: Bits,
    values: Bytes,
    scales: Floats,
    start: int,
    stop: int,
) -> None:
    """`scale_sums`, `swiglu_backward` of that at x, `quantize_rows` of that, a row after the other."""
    d_out = np.empty(sums.shape[1], np.uint16)  # a row's worth, which never leaves the cache
    d_x = np.empty(x.shape[1], np.uint16)
    for i in range(start, stop):
        scale_row(sums[i], row_scales[i], column_scales, d_out)
        swiglu_backward_row(d_out, x[i], d_x)
        scales[i] = quantize_row(d_x, values[i])


@fast_kernel
def scale_columns(sums: Sums, column_scales: Floats, out: Floats, start: int, stop: int) -> None:
    """out = sums * column_scales."""
    for i in range(start, stop):
        row, to = sums[i], out[i]
        for j in range(len(row)):
            to[j] = F32(row[j]) * column_scales[j]


@fast_kernel
def add_scaled_columns(sums: Sums, row_scales: Floats, out: Floats, start: int, stop: int) -> None:
    """out[j] += sums[:, j] * row_scales for the TILE columns j of each tile in start:stop.

    By tiles, since lines a power of two apart share a cache set; parts are whole ones, since what lies in none rounds
    once where a tile rounds twice.
    """
    tile = np.empty((TILE, TILE), np.float32)
    columns = sums.shape[1]
    for left in range(start * TILE, min(stop * TILE, columns), TILE):
        for top in range(0, len(sums), TILE):
            if left + TILE <= columns and top + TILE <= len(sums):
                for i in range(TILE):
                    for j in range(TILE):
                        tile[j, i] = F32(sums[top + i, left + j]) * row_scales[top + i]
                for j in range(TILE):
                    for i in range(TILE):
                        out[left + j, top + i] += tile[j, i]
            else:
                for i in range(top, min(top + TILE, len(sums))):
                    for j in range(left, min(left + TILE, columns)):
                        out[j, i] += F32(sums[i, j]) * row_scales[i]


@fast_kernel
def subtract_gathered(out: Bits, factors: Floats, rows: Bits, indices: Ints, start: int, stop: int) -> None:
    """out[i] -= factors[i] * rows[indices[i]]."""
    for i in range(start, stop):
        row, to, factor = rows[indices[i]], out[i], factors[i]
        for j in range(len(row)):
            to[j] = narrow(widen(to[j]) - factor * widen(row[j]))


@fast_kernel
def subtract_scattered(indices: Ints, factors: Floats, rows: Bits, out: Floats) -> None:
    """out[indices[i]] -= factors[i] * rows[i], one after the other."""
    # Not shared among threads: two rows of one label add to one row of out, in an order that must not change.
    for i in range(len(indices)):
        row, to, factor = rows[i], out[indices[i]], factors[i]
        for j in range(len(row)):
            to[j] -= factor * widen(row[j])
