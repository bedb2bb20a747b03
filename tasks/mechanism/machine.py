"""What this machine and its libraries are: facts that may explain why two builds of one key differ."""

import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tasks.mechanism.execution import Execution


def environment(execution: Execution) -> dict[str, str]:
    """The facts of this machine and its libraries that a reader of a manifest may need to explain a difference."""
    used = {name: str(getattr(execution, name)) for name in ("workers", "threads", "processes")}
    return _machine() | used


@cache
def _machine() -> dict[str, str]:
    """Looked up once: the versions alone take 20 ms, as much as a stage takes for 200 documents."""
    libraries = ("torch", "numpy", "tokenizers", "pyarrow", "numba", "datasketch", "accelerate")
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": str(os.cpu_count()),
        "MKL_CBWR": os.environ.get("MKL_CBWR", "not set"),  # the order of fp32 sums (model/kernels/reproducible.py)
    }
    for library in libraries:
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            facts[library] = "absent"
    return facts


def processor_features() -> frozenset[str]:
    """What the processor can do, by Linux' names (avx512_vnni, amx_bf16); empty on other systems, which do not say."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())  # the latter on ARM


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()  # the second may be empty


def _cpuinfo(field: str) -> str:
    """A field of the first processor; "" where there is none."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""
