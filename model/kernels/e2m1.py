"""The product of a packed NVFP4 row and an fp32 vector: by AVX-512 table look-up, by AVX2, or in plain numba.

Per 32 weights there are 16 bytes: weight j in the low half of byte j, weight 16 + j in its high half, so that one load
and one shift give two blocks in order. All forms are exact: level x block scale x input in fp32.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped_cgutils
from numpy.typing import NDArray

from model.kernels.jit import cpu_features, fast_helper, intrinsic, overload

F32 = np.float32
cgutils: Any = untyped_cgutils
BLOCK = 16
"""Inputs that share a block scale."""
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the codes 0..7 stand for (E2M1 of OCP Microscaling); 8..15 are their negatives."""
EXPONENT_SHIFT = 120 << 23
"""E4M3's exponent bias is 7, fp32's 127: a normal E4M3 byte << 20, plus this, are the bits of the same number."""


def interleave_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes 0..15 (rows, columns), columns a multiple of 32, in the order of this module: (rows, columns / 2)."""
    pairs = codes.reshape(len(codes), -1, 2, BLOCK)
    return np.ascontiguousarray((pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(len(codes), -1))


def dot_nvfp4(codes: NDArray[np.uint8], scales: NDArray[np.uint8], x: NDArray[np.float32]) -> np.float32:
    """Sum of level * scale * x. codes: (columns / 2,); scales: normal E4M3 bytes (columns / 16,); x: (columns,)."""
    raise NotImplementedError  # compiled below


@fast_helper
def scale_of(byte: np.uint8) -> np.float32:
    """The value of a normal E4M3 byte."""
    return np.uint32((np.uint32(byte) << np.uint32(20)) + np.uint32(EXPONENT_SHIFT)).view(np.float32)


@fast_helper
def level_of(code: np.int32) -> np.float32:
    """The value of a code, by arithmetic that vectorises: a table of 16 would be read one by one."""
    exponent = (code >> np.int32(1)) & np.int32(3)
    normal = np.int32(1) if exponent > 0 else np.int32(0)
    doubled = ((code & np.int32(1)) + (normal << np.int32(1))) << (exponent - normal)
    return F32(0.5) * F32(-doubled if code & np.int32(8) else doubled)


def _dot_plain(codes: NDArray[np.uint8], scales: NDArray[np.uint8], x: NDArray[np.float32]) -> np.float32:
    total = F32(0.0)
    for pair in range(codes.shape[0] // BLOCK):
        packed, low, high = codes[pair * BLOCK :], x[2 * pair * BLOCK :], x[(2 * pair + 1) * BLOCK :]
        low_sum, high_sum = F32(0.0), F32(0.0)
        for j in range(BLOCK):
            byte = np.int32(packed[j])
            low_sum += level_of(byte & np.int32(15)) * low[j]
            high_sum += level_of(byte >> np.int32(4)) * high[j]
        total += low_sum * scale_of(scales[2 * pair]) + high_sum * scale_of(scales[2 * pair + 1])
    return F32(total)


@intrinsic
def _dot_avx512(typing_context: Any, codes: Any, scales: Any, x: Any, pairs: Any) -> Any:
    """16 codes at a time as the index into a register of the 16 levels (vpermps). Pointers as integers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dot = _VectorDot(builder, arguments, lanes=16)
        look_up = dot.declare("llvm.x86.avx512.permvar.sf.512", dot.floats, dot.floats, dot.integers)
        levels = dot.constant(dot.floats, [*LEVELS, *(-level for level in LEVELS)])
        return dot.sum_over_pairs(lambda index: builder.call(look_up, [levels, index]))  # heeds the low 4 bits only

    return types.float32(types.intp, types.intp, types.intp, types.intp), generate


@intrinsic
def _dot_avx2(typing_context: Any, codes: Any, scales: Any, x: Any, pairs: Any) -> Any:
    """8 codes at a time: their low 3 bits index the 8 magnitudes, bit 3 becomes the sign. Pointers as integers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dot = _VectorDot(builder, arguments, lanes=8)
        look_up = dot.declare("llvm.x86.avx2.permps", dot.floats, dot.floats, dot.integers)
        magnitudes = dot.constant(dot.floats, LEVELS)
        sign_bit = dot.constant(dot.integers, [-(1 << 31)] * 8)
        to_the_top = dot.constant(dot.integers, [28] * 8)  # bit 3 becomes bit 31

        def level(index: Any) -> Any:
            magnitude = builder.bitcast(builder.call(look_up, [magnitudes, index]), dot.integers)
            sign = builder.and_(builder.shl(index, to_the_top), sign_bit)
            return builder.bitcast(builder.or_(magnitude, sign), dot.floats)

        return dot.sum_over_pairs(level)

    return types.float32(types.intp, types.intp, types.intp, types.intp), generate


class _VectorDot:
    """The loop that both vector forms share, written for registers of `lanes` fp32 numbers."""

    def __init__(self, builder: Any, arguments: Sequence[Any], lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.byte, self.int32, self.float32, self.int64 = ir.IntType(8), ir.IntType(32), ir.FloatType(), ir.IntType(64)
        self.integers, self.floats = ir.VectorType(self.int32, lanes), ir.VectorType(self.float32, lanes)
        self.pairs = arguments[3]
        self.codes, self.scales = (builder.inttoptr(a, self.byte.as_pointer()) for a in arguments[:2])
        self.x = builder.inttoptr(arguments[2], self.float32.as_pointer())

    def constant(self, kind: Any, values: Sequence[float]) -> Any:
        return ir.Constant(kind, values)

    def declare(self, name: str, result: Any, *arguments: Any) -> Any:
        return self.builder.module.declare_intrinsic(name, fnty=ir.FunctionType(result, list(arguments)))

    def sum_over_pairs(self, level: Callable[[Any], Any]) -> Any:
        """Emit the loop over pairs of blocks; `level` emits the levels of codes, whose upper bits are arbitrary."""
        b = self.builder
        zeros = ir.Constant(self.floats, [0.0] * self.lanes)
        # A sum for each half: one alone would wait four cycles for each addition.
        totals = [cgutils.alloca_once_value(b, zeros) for _ in range(2)]
        with cgutils.for_range(b, self.pairs, intp=self.int64) as loop:
            sums = [b.load(total) for total in totals]
            for part in range(BLOCK // self.lanes):
                packed = self._load_codes(loop.index, part)
                upper = b.lshr(packed, ir.Constant(self.integers, [4] * self.lanes))
                for half, index in enumerate((packed, upper)):
                    block = b.add(b.shl(loop.index, self._int(1)), self._int(half))
                    start = b.add(b.mul(block, self._int(BLOCK)), self._int(part * self.lanes))
                    x = self._load(b.gep(self.x, [start]), self.floats)
                    product = b.fmul(level(index), x)
                    scaled = b.fmul(product, self._scale(block), flags=("contract",))  # an FMA with the next
                    sums[half] = b.fadd(sums[half], scaled, flags=("contract",))
            for total, value in zip(totals, sums):
                b.store(value, total)
        return self._lanes_sum(b.fadd(*(b.load(total) for total in totals)))

    def _int(self, value: int) -> Any:
        return ir.Constant(self.int64, value)

    def _load(self, pointer: Any, kind: Any) -> Any:
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=1)  # rows begin anywhere

    def _load_codes(self, pair: Any, part: int) -> Any:
        """The bytes of a pair of blocks (or the part of them that fills the lanes) as 32-bit integers."""
        start = self.builder.add(self.builder.mul(pair, self._int(BLOCK)), self._int(part * self.lanes))
        loaded = self._load(self.builder.gep(self.codes, [start]), ir.VectorType(self.byte, self.lanes))
        return self.builder.zext(loaded, self.integers)

    def _scale(self, block: Any) -> Any:
        """The block's scale in every lane."""
        b = self.builder
        wide = b.zext(b.load(b.gep(self.scales, [block])), self.int32)
        bits = b.add(b.shl(wide, ir.Constant(self.int32, 20)), ir.Constant(self.int32, EXPONENT_SHIFT))
        one = b.insert_element(
            ir.Constant(self.floats, ir.Undefined), b.bitcast(bits, self.float32), ir.Constant(self.int32, 0)
        )
        zeros = ir.Constant(self.integers, [0] * self.lanes)
        return b.shuffle_vector(one, ir.Constant(self.floats, ir.Undefined), zeros)

    def _lanes_sum(self, vector: Any) -> Any:
        """The lanes added up, halves onto halves."""
        b, lanes = self.builder, self.lanes
        while lanes > 1:
            lanes //= 2
            undefined = ir.Constant(vector.type, ir.Undefined)
            first, second = (
                b.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(self.int32, lanes), list(picked)))
                for picked in (range(lanes), range(lanes, 2 * lanes))
            )
            vector = b.fadd(first, second)
        return b.extract_element(vector, ir.Constant(self.int32, 0))


def _dot_with_avx512(codes: NDArray[np.uint8], scales: NDArray[np.uint8], x: NDArray[np.float32]) -> np.float32:
    return F32(_dot_avx512(codes.ctypes.data, scales.ctypes.data, x.ctypes.data, codes.shape[0] // BLOCK))


def _dot_with_avx2(codes: NDArray[np.uint8], scales: NDArray[np.uint8], x: NDArray[np.float32]) -> np.float32:
    return F32(_dot_avx2(codes.ctypes.data, scales.ctypes.data, x.ctypes.data, codes.shape[0] // BLOCK))


class NVFP4Matrix(NamedTuple):
    """NVFP4 in the compiled step (`model.kernels.matvec.StepMatrix`), a matrix of every layer or a stack of one.

    codes: two a byte in the order of `interleave_nibbles` (layers, rows, columns / 2); block_scales: normal E4M3 bytes
    (layers, rows, columns / 16); row_scales: (layers, rows), the global scale of the matrix that a row is from.
    """

    codes: NDArray[np.uint8]
    block_scales: NDArray[np.uint8]
    row_scales: NDArray[np.float32]

    @staticmethod
    def multiply(matrix: Any, layer: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """y = matrix @ x. x: (columns,); y: (rows,)."""
        codes, block_scales, row_scales = matrix.codes[layer], matrix.block_scales[layer], matrix.row_scales[layer]
        for i in range(codes.shape[0]):
            y[i] = dot_nvfp4(codes[i], block_scales[i], x) * row_scales[i]

    @staticmethod
    def read_row(matrix: Any, layer: int, row: int, x: NDArray[np.float32]) -> None:
        """x = row `row` of the matrix."""
        codes, block_scales = matrix.codes[layer, row], matrix.block_scales[layer, row]
        for j in range(x.shape[0]):
            byte = np.int32(codes[j // (2 * BLOCK) * BLOCK + j % BLOCK])
            code = byte >> np.int32(4) if j // BLOCK % 2 else byte & np.int32(15)
            x[j] = level_of(code) * scale_of(block_scales[j // BLOCK]) * matrix.row_scales[layer, row]


# A 5M model decodes 3,600, 2,100 and, plain on SSE2, 170 tokens per CPU-second (docs/LOG.md, 2026-11-22).
FORMS: dict[str, Callable[..., np.float32]] = {"avx512f": _dot_with_avx512, "avx2": _dot_with_avx2, "": _dot_plain}
"""The forms of `dot_nvfp4` by the CPU feature that they need, best first."""


def supported_forms() -> list[str]:
    """The names of the forms that this machine can run, best first."""
    features = cpu_features()
    return [feature for feature in FORMS if not feature or feature in features]


@overload(dot_nvfp4)
def _compile_dot(codes: Any, scales: Any, x: Any) -> Callable[..., np.float32]:
    return FORMS[supported_forms()[0]]
