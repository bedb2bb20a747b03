"""Compile kernels ahead of time with numba; without numba the same functions, or their numpy twins, run as Python."""

import hashlib
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

_RELAXED = {"reassoc", "contract", "arcp", "nsz"}
"""Float sums may be reordered, so that they vectorise; NaN and infinity keep their meaning."""
# Numpy's error model: a division by zero gives infinity, where Python's check of each keeps loops from vectorising.
_RELAXED_PART: Any = {"fastmath": _RELAXED, "error_model": "numpy", "nogil": True, "forceinline": True}
"""Of a function that is only ever a part of kernels."""

try:
    import numba
    from numba import extending
    from numba.core.registry import cpu_target

    COMPILED: bool = os.environ.get("NUMBA_DISABLE_JIT", "0") != "1"
except ImportError:
    COMPILED = False


MODEL_FOLDER = Path(__file__).resolve().parents[1]


def _cache_folder() -> Path:
    """Where compiled kernels are kept, a folder for each state of all files with kernels.

    numba looks only at the file of a kernel to tell whether what it kept is stale, not at the kernels it calls.
    """
    digest = hashlib.sha256()
    for path in sorted(MODEL_FOLDER.rglob("*.py")):  # a folder has no order of its own
        source = path.read_bytes()
        if b"model.kernels.jit" in source:  # where the decorators come from
            digest.update(str(path.relative_to(MODEL_FOLDER)).encode() + source)
    parent = os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parent / "__pycache__"
    return Path(parent) / f"kernels-{digest.hexdigest()[:16]}"


if COMPILED:
    setattr(numba.config, "CACHE_DIR", str(_cache_folder()))  # noqa: B010 - numba makes its settings as it starts


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


def bare_helper(function: F) -> F:
    """A small function that kernels call, which allocates nothing: compiled into each, without counting references.

    The counts are atomic: a call with two arrays in an inner loop costs 20 ns for them alone, which was half the time
    of the scans over text.
    """
    if not COMPILED:
        return function
    options: Any = {"nogil": True, "cache": True, "error_model": "numpy", "_nrt": False}
    return cast(F, numba.njit(**options)(function))


def fast_kernel(function: F) -> F:
    """Compile on first use for the types met, letting float sums be reordered so that they vectorise.

    NaN and infinity keep their meaning: a loss that diverged must show. What it calls must be a `fast_helper`.
    """
    if not COMPILED:
        return function
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_RELAXED)(function))


def fast_helper(function: F) -> F:
    """A function that fast kernels call: made part of each of them, never called or kept by itself.

    Otherwise the caller's object code holds a copy, compiled a second time and so with its sums in another order, and
    the loader takes whichever of all copies in the process came first: the process that compiled a kernel computed
    other bits than those that found it on the disk.
    """
    if not COMPILED:
        return function
    return cast(F, numba.njit(**_RELAXED_PART)(function))


def _numba_type(name: str) -> Any:
    writable = name.startswith("out ")
    base, _, dimensions = name.removeprefix("out ").partition("[")
    scalar = numba.from_dtype(_dtype(base))
    if not dimensions:
        return scalar
    return numba.types.Array(scalar, dimensions.count(":"), "C", readonly=not writable)


def _dtype(code: str) -> Any:
    return np.dtype("bool" if code == "b1" else code)


def overload(function: Callable[..., Any]) -> Callable[[F], F]:
    """Inside kernels `function` stands for what the decorated chooser returns, given the types of the arguments."""

    def decorate(choose: F) -> F:
        if not COMPILED:
            return choose
        choose.__annotations__ = {}  # numba takes differing annotations for differing arguments

        @wraps(choose)
        def chosen(*argument_types: Any) -> Callable[..., Any]:
            form: Callable[..., Any] = choose(*argument_types)
            form.__annotations__ = {}
            return form

        return cast(F, extending.overload(function, jit_options=_RELAXED_PART)(chosen))

    return decorate


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel's building block in LLVM's own language: `function(typing_context, *types)` -> (signature, codegen)."""
    return extending.intrinsic(function) if COMPILED else function


def cpu_features() -> frozenset[str]:
    """What the compiler may use of this machine, e.g. "avx512f"; NUMBA_CPU_NAME and NUMBA_CPU_FEATURES are heeded."""
    if not COMPILED:
        return frozenset()
    features = str(cpu_target.target_context.codegen().magic_tuple()[2])
    return frozenset(feature[1:] for feature in features.split(",") if feature.startswith("+"))
