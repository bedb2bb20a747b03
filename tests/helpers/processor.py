"""What is promised of this machine's processor: how far bf16 products give the same bits on any number of threads."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def bf16_bits_hold_to() -> int:
    """The largest inner dimension whose bf16 products do not depend on the number of threads; docs/training.md.

    0: products of all sizes do. Known of x86 processors; of others nothing was compared.
    """
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    if facts.get("vendor_id") == "AuthenticAMD" and "avx512_bf16" in flags:
        return sys.maxsize
    return 448 if "amx_bf16" in flags else 0


@contextmanager
def using(threads: int) -> Iterator[None]:
    """Let torch and the kernels use so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
