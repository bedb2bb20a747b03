"""MKL adds up in one order, whatever of ours is imported first; what the user set stays; where it is late we say so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.kernels.reproducible import VARIABLE, strict_mode

ROOT = Path(__file__).parents[2]
MULTIPLY = "import torch; torch.ones(64, 64) @ torch.ones(64, 64)"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python without what this process has set."""
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, cwd=ROOT, capture_output=True, text=True, check=True
    )


def wanted() -> str:
    """What this machine's MKL shall be told."""
    path = Path("/proc/cpuinfo")
    return strict_mode(path.read_text()) if path.exists() else ""


def cpu(vendor: str, flags: str) -> str:
    return f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n"


def test_each_processor_gets_the_best_branch_that_it_has() -> None:
    assert strict_mode(cpu("GenuineIntel", "avx2 avx512f avx512bw amx_bf16")) == "AVX512,STRICT"
    assert strict_mode(cpu("GenuineIntel", "avx avx2")) == "AVX2,STRICT"
    assert strict_mode(cpu("GenuineIntel", "avx2 avx512f avx512pf")) == "AVX2,STRICT"  # Xeon Phi
    assert strict_mode(cpu("GenuineIntel", "avx")) == ""
    assert strict_mode(cpu("AuthenticAMD", "avx2 avx512f avx512bw avx512_bf16")) == ""
    assert strict_mode("") == ""


@pytest.mark.parametrize("package", ["model", "tasks", "flows", "benchmarks"])
def test_every_way_in_sets_it(package: str) -> None:
    code = f"import os, {package}; print(os.environ.get({VARIABLE!r}, ''))"
    assert run(code).stdout.strip() == wanted()


def test_what_the_user_set_stays() -> None:
    code = f"import os, model; print(os.environ[{VARIABLE!r}])"
    ran = run(code, **{VARIABLE: "COMPATIBLE"})
    assert ran.stdout.strip() == "COMPATIBLE" and not ran.stderr


@pytest.mark.skipif(not wanted(), reason="MKL has no strict mode on this processor")
def test_it_is_in_force_and_said_where_it_cannot_be() -> None:
    asked = "from model.kernels.reproducible import _is_in_force; print(_is_in_force())"
    late = run(f"{MULTIPLY}; {asked}")
    assert late.stdout.strip() == "False"
    assert "RuntimeWarning: torch multiplied before Bessemer was imported" in late.stderr
    for code in (f"import model; {MULTIPLY}; {asked}", f"import torch; import model; {MULTIPLY}; {asked}"):
        ran = run(code)
        assert ran.stdout.strip() == "True" and not ran.stderr


def test_this_process_has_it() -> None:
    """What the tests compare over threads is computed as it is outside of them."""
    assert os.environ.get(VARIABLE, "") == wanted()
