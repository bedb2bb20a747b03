"""What the kernels do to one number, and the types they do it in: bf16 as the upper half of an fp32, exp, sigmoid."""

import numpy as np
from numpy.typing import NDArray

from model.kernels.jit import fast_helper

F32 = np.float32
Floats = NDArray[np.float32]
Bits = NDArray[np.uint16]  # bf16
Ints = NDArray[np.int64]

LOG2E = F32(1.4426950408889634)


@fast_helper
def widen(bits: np.uint16) -> np.float32:
    """bf16 bits as fp32."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@fast_helper
def narrow(value: np.float32) -> np.uint16:
    """fp32 as bf16 bits, rounded to nearest even."""
    # LLVM's own fptrunc vectorises less: 6.8 against 5.3 µs for 45,000 numbers (docs/LOG.md, 2026-11-27).
    bits = F32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@fast_helper
def ordered(bits: np.uint16 | np.int32) -> np.int32:
    """bf16 bits as an integer that sorts as they do, and back: an integer maximum vectorises, one of floats does not.

    A positive NaN sorts above infinity, and so becomes the maximum of its row.
    """
    value = np.int32(np.int16(bits))
    return np.int32(value ^ ((value >> np.int32(31)) & np.int32(0x7FFF)))


@fast_helper
def highest_of(row: Bits) -> np.float32:
    """The greatest of some bf16 values, at least one."""
    best = ordered(row[0])
    for j in range(len(row)):
        best = max(best, ordered(row[j]))
    return widen(np.uint16(ordered(best)))


@fast_helper
def exp2(x: np.float32) -> np.float32:
    """2**x to 2e-7 relative for x <= 127, by a polynomial on [-0.5, 0.5] so that loops vectorise; NaN stays NaN."""
    x = F32(-126.0) if x < F32(-126.0) else x  # the least normal exponent; NaN is not less, and stays
    whole = np.floor(x + F32(0.5))
    f = x - whole
    p = F32(1.5353362e-4)
    p = p * f + F32(1.3398874e-3)
    p = p * f + F32(9.6184370e-3)
    p = p * f + F32(5.5503324e-2)
    p = p * f + F32(2.4022648e-1)
    p = p * f + F32(6.9314720e-1)
    p = p * f + F32(1.0)
    # 2**whole by writing the exponent of an fp32, biased by 127.
    power: np.float32 = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return F32(p * power)


@fast_helper
def sigmoid(x: np.float32) -> np.float32:
    """1 / (1 + e^-x)."""
    z = -x * LOG2E  # exp2 holds up to 127, hence the bound below
    return F32(1.0) / (F32(1.0) + exp2(F32(126.0) if z > F32(126.0) else z))
