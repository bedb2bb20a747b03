"""Rows of .npy files, read and appended piece by piece, so that memory does not depend on the size of the file."""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray


class ArrayRows:
    """Rows [start, end) of a .npy file, by plain reads: the pages of a map would count as this process's memory."""

    def __init__(self, path: Path, start: int = 0, end: int | None = None) -> None:
        with path.open("rb") as stream:
            npy.read_magic(stream)
            self._shape, _, self.dtype = npy.read_array_header_1_0(stream)
            self._data = stream.tell()
        self._path = path
        self._start = start
        self._end = self._shape[0] if end is None else end
        self._width = int(np.prod(self._shape[1:]))

    def __len__(self) -> int:
        return self._end - self._start

    def read(self, start: int, count: int) -> NDArray[Any]:
        """At most `count` rows from the `start`-th of these on."""
        count = min(count, len(self) - start)
        offset = self._data + (self._start + start) * self._width * self.dtype.itemsize
        rows = np.fromfile(self._path, self.dtype, count * self._width, offset=offset)
        return rows.reshape(count, *self._shape[1:])


class ArrayWriter:
    """A .npy file that grows by blocks of rows; equal to what np.save writes of all of them."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._rows = 0
        self._like: NDArray[Any] | None = None

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._stream:
            if kind is None:
                self._stream.seek(0)
                self._write_header()

    def __len__(self) -> int:
        return self._rows

    def append(self, rows: NDArray[Any]) -> None:
        """Write these rows after those before them."""
        if self._like is None:
            # The header comes before the rows in the file: written now for its place, again with their number.
            self._like = np.empty((0, *rows.shape[1:]), rows.dtype)
            self._write_header()
        rows.tofile(self._stream)
        self._rows += len(rows)

    def _write_header(self) -> None:
        """Of the same length whatever the number of rows is: the format leaves it room to grow."""
        assert self._like is not None, "a merge has one block at least"
        npy.write_array_header_1_0(
            self._stream,
            {
                "descr": npy.dtype_to_descr(self._like.dtype),
                "fortran_order": False,
                "shape": (self._rows, *self._like.shape[1:]),
            },
        )
