"""Matrices of the compiled step, a class for each format of weights, and their products with a vector.

A kernel calls `multiply` and `read_row`, and numba puts in their place what the class of the matrix says, so that it
compiles the step once for each mixture of formats it meets and no kernel asks which format it has.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model.kernels.jit import overload

F32 = np.float32
Floats = NDArray[np.float32]


class StepMatrix(Protocol):
    """A NamedTuple of arrays, and what kernels do with it: its static methods are compiled into them.

    Every array begins with the dimensions (layers, rows); the first is `codes`.
    """

    @property
    def codes(self) -> NDArray[Any]:
        """The weights or what stands for them."""

    @staticmethod
    def multiply(matrix: Any, layer: int, x: Floats, y: Floats) -> None:
        """y = matrix of the layer @ x. x: (columns,); y: (rows,)."""

    @staticmethod
    def read_row(matrix: Any, layer: int, row: int, x: Floats) -> None:
        """x = the row `row` of the matrix of the layer: (columns,)."""


def multiply(matrix: StepMatrix, layer: int, x: Floats, y: Floats) -> None:
    """y = matrix of the layer @ x. x: (columns,); y: (rows,)."""
    raise NotImplementedError  # compiled for each class, below


@overload(multiply)
def _compile_multiply(matrix: Any, layer: Any, x: Any, y: Any) -> Callable[..., None]:
    compiled: Callable[..., None] = matrix.instance_class.multiply
    return compiled


def read_row(matrix: StepMatrix, layer: int, row: int, x: Floats) -> None:
    """x = the row `row` of the matrix of the layer: (columns,)."""
    raise NotImplementedError  # compiled for each class, below


@overload(read_row)
def _compile_read_row(matrix: Any, layer: Any, row: Any, x: Any) -> Callable[..., None]:
    compiled: Callable[..., None] = matrix.instance_class.read_row
    return compiled


class F32Matrix(NamedTuple):
    """Weights in full: codes (layers, rows, columns) are the numbers themselves."""

    codes: Floats

    @staticmethod
    def multiply(matrix: Any, layer: int, x: Floats, y: Floats) -> None:
        """y = matrix of the layer @ x."""
        codes = matrix.codes[layer]
        for i in range(codes.shape[0]):
            row = codes[i]
            total = F32(0.0)  # a plain 0.0 would make the sum fp64, at half the lanes
            for j in range(x.shape[0]):
                total += row[j] * x[j]
            y[i] = total

    @staticmethod
    def read_row(matrix: Any, layer: int, row: int, x: Floats) -> None:
        """x = the row."""
        x[:] = matrix.codes[layer, row]


class Int8Matrix(NamedTuple):
    """INT8: codes (layers, rows, columns), row_scales (layers, rows)."""

    codes: NDArray[np.int8]
    row_scales: Floats

    @staticmethod
    def multiply(matrix: Any, layer: int, x: Floats, y: Floats) -> None:
        """y = matrix of the layer @ x: a row is summed in fp32 and scaled once."""
        codes, row_scales = matrix.codes[layer], matrix.row_scales[layer]
        for i in range(codes.shape[0]):
            row = codes[i]
            # Int8 x int8 by VNNI errs four times as much (docs/LOG.md, 2026-11-22); it had 1.5 times the tokens/s at 4M
            # parameters, but 179 for 175 at 135M, where memory decides.
            total = F32(0.0)
            for j in range(x.shape[0]):
                total += F32(row[j]) * x[j]
            y[i] = total * row_scales[i]

    @staticmethod
    def read_row(matrix: Any, layer: int, row: int, x: Floats) -> None:
        """x = the row, dequantised."""
        codes = matrix.codes[layer, row]
        for j in range(x.shape[0]):
            x[j] = F32(codes[j]) * matrix.row_scales[layer, row]
