"""Whether the compiled kernels run, and on how many threads: one switch, one test of the device, one pool."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from model.kernels.jit import COMPILED

Fusion = Literal["auto", "off"]

_selected: Fusion = "auto"  # a plain global: torch.compile can guard on it, not on a ContextVar
_SMALLEST_PART = 64  # rows; below this a thread costs more than it brings


@contextmanager
def fusion(choice: Fusion) -> Iterator[None]:
    """Switch the compiled kernels `off`, or back to `auto`, inside the `with` block."""
    global _selected
    before, _selected = _selected, choice
    try:
        yield
    finally:
        _selected = before


def fuses(x: Tensor, weights: torch.dtype) -> bool:
    """Whether a layer whose weights are of the dtype `weights` should use the fused kernels on `x`: under bf16 autocast
    on a CPU, with fp32 master weights, and not under torch.compile, which cannot look into them."""
    return (
        COMPILED
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and weights == torch.float32
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and _selected == "auto"
    )


def has_kernels(device: torch.device) -> bool:
    """Whether the compiled kernels are for this device, and not switched off."""
    return COMPILED and device.type == "cpu" and _selected == "auto"


def compiled_for(x: Tensor) -> bool:
    """Whether the compiled kernels can work on the bits of `x`."""
    return has_kernels(x.device) and x.dtype == torch.bfloat16


def bits(x: Tensor) -> NDArray[Any]:
    """The memory of a contiguous tensor as numpy, bf16 as uint16."""
    assert x.is_contiguous()
    return (x.detach().view(torch.uint16) if x.dtype == torch.bfloat16 else x.detach()).numpy()


# One pool of all threads serves calls of any number of parts; threads suffice, since kernels release the GIL.
@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def spread(kernel: Callable[..., None], count: int, *arguments: Any, smallest: int = _SMALLEST_PART) -> None:
    """Call kernel(*arguments, start, stop) over 0:count, in as many threads as torch uses."""
    parts = min(torch.get_num_threads(), max(1, count // smallest))
    if parts == 1:
        kernel(*arguments, 0, count)
        return
    borders = [count * part // parts for part in range(parts + 1)]
    others = [_pool(torch.get_num_threads()).submit(kernel, *arguments, *pair) for pair in pairwise(borders[1:])]
    kernel(*arguments, 0, borders[1])  # the first part in this thread, which would only wait
    for other in others:
        other.result()  # raises here what a kernel raised there
