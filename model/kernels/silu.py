"""silu with torch's own bits on any number of threads.

torch gives each thread an equal share of the elements and computes what is left over of a share's vectors one by one,
with another exponential: on 477 x 176 numbers in fp32 2 threads gave other last bits than 1, on any processor.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.dispatch import spread

BLOCK = 32768  # elements, at::internal::GRAIN_SIZE: torch gives no more than that to one thread undivided


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), any shape; on a CPU the bits that torch computes with one thread."""
    if torch.compiler.is_compiling():  # first of all: what follows would break the graph, and keep more activations
        return F.silu(x)
    divided = x.device.type == "cpu" and x.numel() > BLOCK and torch.get_num_threads() > 1
    if not divided:
        return F.silu(x)
    found: Tensor = _SiluByBlocks.apply(x)  # type: ignore[no-untyped-call]
    return found


class _SiluByBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()  # blocks are of the memory, as torch's shares are
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        spread(_forward, _blocks(x), x.view(-1), out.view(-1), smallest=1)  # a block is one thread's
        return out

    @staticmethod
    def backward(ctx: Any, *d_outs: Tensor) -> Tensor:
        (d_out,), (x,) = d_outs, ctx.saved_tensors
        d_x = torch.empty_like(x)
        spread(_backward, _blocks(x), d_out.contiguous().view(-1), x.view(-1), d_x.view(-1), smallest=1)
        return d_x


def _blocks(x: Tensor) -> int:
    return -(-x.numel() // BLOCK)


def _forward(x: Tensor, out: Tensor, start: int, stop: int) -> None:
    """Blocks `start:stop` of flat tensors, as spread calls it."""
    with torch.inference_mode():  # a thread of its own knows neither the caller's mode nor no_grad
        for block in range(start, stop):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            torch.ops.aten.silu.out(x[part], out=out[part])


def _backward(d_out: Tensor, x: Tensor, d_x: Tensor, start: int, stop: int) -> None:
    with torch.inference_mode():
        for block in range(start, stop):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            torch.ops.aten.silu_backward.grad_input(d_out[part], x[part], grad_input=d_x[part])
