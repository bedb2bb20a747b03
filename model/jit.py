"""Compile kernels ahead of time with numba; without numba the same functions, or their numpy twins, run as Python."""

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba

    COMPILED: bool = os.environ.get("NUMBA_DISABLE_JIT", "0") != "1"
except ImportError:
    COMPILED = False


def kernel(*argument_types: str) -> Callable[[F], F]:
    """Compile for exactly these argument types, e.g. `kernel("u1[:]", "i8[:]", "i8")`, at import, cached on disk.

    Arrays are taken as read-only and C-contiguous unless marked with a leading `out `: read-only Arrow buffers and
    writable numpy arrays are different types to numba, and a kernel without stated types is compiled once for each
    mixture it meets (about 1 s a time).
    """

    def decorate(function: F) -> F:
        if not COMPILED:
            return function
        signature = tuple(_numba_type(name) for name in argument_types)
        return cast(F, numba.njit(signature, nogil=True, cache=True, error_model="numpy")(function))

    return decorate


def helper(function: F) -> F:
    """A small function that kernels call; compiled into each of them."""
    if not COMPILED:
        return function
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))


def fast_kernel(function: F) -> F:
    """Compile on first use for the types met, letting float sums be reordered so that they vectorise.

    NaN and infinity keep their meaning: a loss that diverged must show.
    """
    if not COMPILED:
        return function
    relaxed = {"reassoc", "contract", "arcp", "nsz"}
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=relaxed)(function))


def _numba_type(name: str) -> Any:
    writable = name.startswith("out ")
    base, _, dimensions = name.removeprefix("out ").partition("[")
    scalar = numba.from_dtype(_dtype(base))
    if not dimensions:
        return scalar
    return numba.types.Array(scalar, dimensions.count(":"), "C", readonly=not writable)


def _dtype(code: str) -> Any:
    return np.dtype("bool" if code == "b1" else code)
