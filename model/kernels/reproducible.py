"""Have MKL add up in one order on any number of threads; every package calls this before it can multiply anything.

MKL shares an fp32 product among threads by its shape: on a Xeon with AVX-512, 141 of 192 shapes gave other last bits
with 2 or 3 threads than with 1. Strict conditional numerical reproducibility (CNR) cured them all, there and with AMX.
"""

import ctypes
import os
import sys
import warnings
from pathlib import Path

VARIABLE = "MKL_CBWR"
_STRICT = 0x10000  # MKL_CBWR_STRICT of mkl_types.h
_ALL = -1  # MKL_CBWR_ALL: branch and strictness


def fix_order_of_sums() -> None:
    """Ask MKL for strict CNR where the processor has it, unless MKL_CBWR says something else already.

    MKL reads the variable at its first product, so this also serves where torch was imported before us but has not
    multiplied yet; where it has, a RuntimeWarning says so. Child processes inherit the variable.
    """
    if VARIABLE in os.environ:  # chosen by a person, or handed down by our own parent
        return
    mode = strict_mode(_processor())
    if not mode:
        return
    os.environ[VARIABLE] = mode
    if not _is_in_force():
        warnings.warn(
            f"torch multiplied before Bessemer was imported, too late for {VARIABLE}={mode}: in this process the last "
            f"bits of fp32 products depend on the number of threads. Import Bessemer first, or set {VARIABLE}.",
            RuntimeWarning,
            stacklevel=2,
        )


def strict_mode(processor: str) -> str:
    """What MKL_CBWR shall be on this processor, described as in /proc/cpuinfo; "" where MKL has no such mode.

    MKL takes branches on Intel's processors only. Where it refuses one it falls back to CNR without strictness, which
    is slower than none and promises nothing across threads; on AMD's Zen 4 threads changed no bit without it.
    """
    fields = dict(_field(line) for line in processor.splitlines())
    flags = fields.get("flags", "").split()
    if fields.get("vendor_id") != "GenuineIntel":
        return ""
    if "avx512bw" in flags:  # not avx512f alone, which Xeon Phi has too: MKL counts that as another branch
        return "AVX512,STRICT"
    return "AVX2,STRICT" if "avx2" in flags else ""


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _processor() -> str:
    """The first processor's lines of /proc/cpuinfo; nothing on other systems than Linux."""
    path = Path("/proc/cpuinfo")
    return path.read_text().partition("\n\n")[0] if path.exists() else ""


def _is_in_force() -> bool:
    """Whether MKL adds up strictly in this process, as far as it can be asked: torch has it inside, unlisted."""
    torch = sys.modules.get("torch")
    if torch is None or torch.__file__ is None:
        return True  # nothing has multiplied, so the variable will be read
    try:
        mode = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).mkl_serv_cbwr_get(_ALL)
    except (OSError, AttributeError):
        return True  # a torch without MKL inside
    return bool(mode & _STRICT)
