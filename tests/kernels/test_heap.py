"""Freed memory stays with the process: a block that is taken again must not be faulted in again."""

import os
import resource
import subprocess
import sys

import pytest

TOUCHED = """
import resource, sys
import torch
from model.kernels.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(20):  # until the heap has found its shape
    torch.ones(40_000_000, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(40_000_000, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(choice: str) -> int:
    done = subprocess.run([sys.executable, "-c", TOUCHED, choice], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library than glibc")
def test_large_blocks_are_not_faulted_in_each_time() -> None:
    pages_of_a_block = 40_000_000 // resource.getpagesize()
    assert faults("leave") > 18 * pages_of_a_block
    assert faults("keep") < 2 * pages_of_a_block
