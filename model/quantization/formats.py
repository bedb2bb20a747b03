"""The formats of quantized weights: one class each, one object each, found by name in `FORMATS`.

A format says how a matrix is rounded, what tensors it is stored as, what they stand for, which kernel multiplies them
in the compiled step of a CPU and what they become in GGUF. Whoever meets a quantized matrix asks its format, so a new
one is a class here, its kernel in `model/kernels` and a test. Nothing here imports torch, which takes seconds: recipes
and the command line read the names.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from model.kernels.matvec import StepMatrix

_LARGEST_INT8 = 127  # -128 stays unused: with it the codes would not be symmetric


@dataclass(frozen=True)
class Stored:
    """One of the tensors that a matrix (rows, columns) is stored as.

    `inputs` share one element; 0 says that the whole row does. A tensor that is not `by_row` has one element for the
    matrix. `dtype` is numpy's and torch's name.
    """

    dtype: str
    inputs: int = 0
    by_row: bool = True

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Its shape for a matrix (rows, columns)."""
        if not self.by_row:
            return (1,)
        return (rows, columns // self.inputs) if self.inputs else (rows,)


class ColumnRounding(Protocol):
    """A matrix rounded one column at a time, as GPTQ needs it."""

    def round(self, rest: "Tensor", column: int) -> "Tensor":
        """Choose the codes of `column` of `rest` (rows, columns), the weights as corrected so far; what the codes
        stand for: (rows,). Columns come in order, each once."""

    def tensors(self) -> "dict[str, Tensor]":
        """The matrix as it is stored, once every column is rounded."""


class Format(ABC):
    """What Bessemer knows of one format."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """For the form and `--help`: what it is, in a few words."""
    stored: ClassVar[Mapping[str, Stored]]
    inputs_multiple: ClassVar[int] = 1
    """The columns of a matrix must be a multiple of it."""
    gguf_type: ClassVar[str]
    """Type of its matrices in a GGUF file, by the name of gguf.GGMLQuantizationType."""
    gguf_file_type: ClassVar[int | None] = None
    """llama.cpp's LLAMA_FTYPE of a file that keeps the codes; None where GGUF cannot and weights are rounded anew."""

    @property
    def bits_per_weight(self) -> float:
        """What a weight of a wide matrix takes, with its share of the scales."""
        return sum(8 * np.dtype(part.dtype).itemsize / part.inputs for part in self.stored.values() if part.inputs)

    @abstractmethod
    def nearest(self, weight: "Tensor") -> "QuantizedWeight":
        """Each weight rounded on its own. weight: (rows, columns).

        Raises:
            ValueError: the columns are no multiple of `inputs_multiple`.
        """

    @abstractmethod
    def rounding(self, weight: "Tensor", importance: "Tensor") -> ColumnRounding:
        """The same column by column. weight: (rows, columns); importance of each input: (columns,)."""

    @abstractmethod
    def dequantize(self, tensors: "Mapping[str, Tensor]") -> "Tensor":
        """The fp32 matrix (rows, columns) that the tensors stand for."""

    @abstractmethod
    def step_matrix(self, tensors: "Mapping[str, Tensor]") -> "StepMatrix":
        """The matrix in the layout of its kernel, without the dimension of layers.

        Raises:
            ValueError: the kernel does not read such values.
        """

    def gguf_tensors(self, tensors: "Mapping[str, Tensor]") -> dict[str, NDArray[np.generic]]:
        """What a GGUF file holds of the matrix, by the end of the name: blocks of `gguf_type` as bytes, fp32 scales."""
        raise NotImplementedError(f"{self.name} has no layout of its own in GGUF")

    def check_columns(self, weight: "Tensor") -> None:
        """Refuse a matrix that does not divide into the blocks of the format.

        Raises:
            ValueError: with the number of columns.
        """
        if weight.shape[1] % self.inputs_multiple:
            raise ValueError(
                f"{self.name.upper()} needs a multiple of {self.inputs_multiple} inputs, "
                f"got a matrix with {weight.shape[1]}."
            )


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix (rows, columns) as its format stores it."""

    format: Format
    tensors: "Mapping[str, Tensor]"

    @property
    def columns(self) -> int:
        """The inputs of the matrix."""
        return self.tensors["codes"].shape[1] * self.format.stored["codes"].inputs

    def dequantize(self) -> "Tensor":
        """The fp32 matrix (rows, columns)."""
        return self.format.dequantize(self.tensors)

    def rows(self, ids: "Tensor") -> "QuantizedWeight":
        """The matrix of the rows `ids`: integers (n,)."""
        stored = self.format.stored
        picked = {name: tensor[ids] if stored[name].by_row else tensor for name, tensor in self.tensors.items()}
        return QuantizedWeight(self.format, picked)


class Int8(Format):
    """weight[i, j] = codes[i, j] * scales[i]."""

    name = "int8"
    summary = "integers with a scale per row"
    stored: ClassVar = {"codes": Stored("int8", inputs=1), "scales": Stored("float32")}
    gguf_type = "Q8_0"  # integers with a scale per 32 inputs: the nearest that GGUF has

    def nearest(self, weight: "Tensor") -> QuantizedWeight:
        """The nearest multiple of the largest magnitude of the row / 127."""
        scales = int8_scales(weight)
        return QuantizedWeight(self, {"codes": int8_codes(weight, scales).char(), "scales": scales})

    def rounding(self, weight: "Tensor", importance: "Tensor") -> "_Int8Rounding":
        """Scales are those of the matrix as it comes: a row has one, and all its columns see it."""
        return _Int8Rounding(weight)

    def dequantize(self, tensors: "Mapping[str, Tensor]") -> "Tensor":
        """Codes times the scale of their row."""
        return tensors["codes"].float() * tensors["scales"][:, None]

    def step_matrix(self, tensors: "Mapping[str, Tensor]") -> "StepMatrix":
        """Codes and scales as they are."""
        from model.kernels.matvec import Int8Matrix

        return Int8Matrix(tensors["codes"].numpy(), tensors["scales"].numpy())


def int8_scales(weight: "Tensor") -> "Tensor":
    """Largest magnitude of each row / 127; 1 for a row of zeros. (rows, columns) -> (rows,)."""
    largest = weight.float().abs().amax(-1)
    return (largest / _LARGEST_INT8).where(largest > 0, 1.0)  # zeros stay zeros by any scale but 0


def int8_codes(weight: "Tensor", scales: "Tensor") -> "Tensor":
    """Nearest codes -127..127 as floats. weight: (rows, columns); scales: (rows,)."""
    return (weight / scales[:, None]).round().clamp(-_LARGEST_INT8, _LARGEST_INT8)


class _Int8Rounding:
    def __init__(self, weight: "Tensor") -> None:
        self.scales = int8_scales(weight)
        self.codes = weight.new_empty(weight.shape).char()

    def round(self, rest: "Tensor", column: int) -> "Tensor":
        codes = int8_codes(rest[:, column, None], self.scales)[:, 0]
        self.codes[:, column] = codes
        return codes * self.scales

    def tensors(self) -> "dict[str, Tensor]":
        return {"codes": self.codes, "scales": self.scales}


class NVFP4(Format):
    """weight[i, j] = E2M1 level(codes[i, j]) * e4m3(scales[i, j // 16]) * global_scale.

    NVIDIA's block format. On disk two codes share a byte, the even column in the low half, as torchao and vLLM have it.
    """

    name = "nvfp4"
    summary = "4-bit floats with a scale per 16 inputs"
    stored: ClassVar = {
        "codes": Stored("uint8", inputs=2),
        "scales": Stored("uint8", inputs=16),  # bytes of E4M3
        "global_scale": Stored("float32", by_row=False),
    }
    inputs_multiple = 32  # pairs of blocks: the kernel reads 16 bytes of two codes at a time
    gguf_type = "NVFP4"
    gguf_file_type = 39  # MOSTLY_NVFP4

    def nearest(self, weight: "Tensor") -> QuantizedWeight:
        """Scales with the least squared error of their block, then the nearest level."""
        from model.quantization import nvfp4

        self.check_columns(weight)
        return QuantizedWeight(self, nvfp4.nearest(weight))

    def rounding(self, weight: "Tensor", importance: "Tensor") -> ColumnRounding:
        """A block's scale is chosen when its first column comes, by the error weighted with the importance."""
        from model.quantization import nvfp4

        self.check_columns(weight)
        return nvfp4.Rounding(weight, importance)

    def dequantize(self, tensors: "Mapping[str, Tensor]") -> "Tensor":
        """Levels times both scales."""
        from model.quantization import nvfp4

        return nvfp4.dequantize(tensors)

    def step_matrix(self, tensors: "Mapping[str, Tensor]") -> "StepMatrix":
        """Codes in the order of the kernel."""
        from model.quantization import nvfp4

        return nvfp4.step_matrix(tensors)

    def gguf_tensors(self, tensors: "Mapping[str, Tensor]") -> dict[str, NDArray[np.generic]]:
        """Codes and scales go over as they are, in blocks of 64 inputs."""
        from model.quantization import nvfp4

        return nvfp4.gguf_tensors(tensors)


FORMATS: Mapping[str, Format] = {weight_format.name: weight_format for weight_format in (Int8(), NVFP4())}
"""Every format by its name, as recipes, `quantization.json` and the command line have it."""

DEFAULT = FORMATS["int8"]
"""What a matrix is stored in whose columns do not divide into the blocks of the format asked for, and embedding and
head always: in INT8 those cost nothing measurable, in NVFP4 as much as all the rest."""

GGUF_FILE_TYPES: Mapping[str, int] = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q8_0": 7,
    **{name: found.gguf_file_type for name, found in FORMATS.items() if found.gguf_file_type is not None},
}
"""What the weights of a GGUF file can be, and llama.cpp's LLAMA_FTYPE of each."""

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]  # a Literal, because Prefect shows one as a select
