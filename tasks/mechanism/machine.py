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


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()  # the former may be empty
