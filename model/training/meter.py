"""What a step costs the machine: its share of the peak FLOP/s, memory and energy, each only where it can be known.

MFU is the model's FLOPs (network/flops.py; nothing for padding or recomputation) over the most the devices can do.
"""

import contextlib
import re
import resource
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from model.kernels.heap import give_back_freed_memory
from model.network.flops import flops_per_token
from model.network.shape import ModelConfig, Precision
from model.training.data import Batch

MACHINE_FIGURES = frozenset({"tokens_per_s", "mfu", "peak_memory_bytes", "joules"})
"""Figures of a step that two equal runs do not share."""

BF16_PEAKS = {  # dense, from the makers' data sheets, in FLOP/s; 0: another card than its name begins with, unknown
    "H200": 989e12, "H200 NVL": 835e12, "GH200": 989e12, "H100": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
    "A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "B200": 2250e12, "A10G": 70e12,
    "RTX 4090": 165e12, "RTX 4090 D": 0.0, "RTX 4090 Laptop": 0.0,
}  # fmt: skip
POWERCAP = Path("/sys/class/powercap")
_PEAK_SIZE = 1024  # of the matrices whose product gives a CPU's peak: they fit its cache
_PEAK_SECONDS = 0.2


class EnergyCounter(Protocol):
    """Counts what a device draws."""

    def joules(self) -> float:
        """Joules since the last call, or since it was made."""


def peak_flops(device: torch.device, precision: Precision) -> float:
    """FLOP/s that one process can reach at most; 0 where nobody knows.

    A GPU's is that of its data sheet, in bf16 alone: in fp8 a part of the work has another. A CPU's is measured, in
    bf16 for int8 too, over the threads that torch uses now.
    """
    if device.type == "cpu":
        return measured_cpu_peak(precision, torch.get_num_threads())
    return data_sheet_peak(torch.cuda.get_device_name(device)) if precision == "bf16" else 0.0


def data_sheet_peak(name: str) -> float:
    """The bf16 FLOP/s of the card that the driver calls `name`; 0 for one that is not in the table."""
    known = [card for card in BF16_PEAKS if re.search(rf"\b{card}\b", name)]
    return BF16_PEAKS[max(known, key=len)] if known else 0.0  # "H100 PCIe" is also an "H100"


@lru_cache(maxsize=8)
def measured_cpu_peak(precision: Precision, threads: int) -> float:
    """The best of some products of matrices, by CPU time: what others do on the machine does not lower it."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    a, b = torch.ones(2, _PEAK_SIZE, _PEAK_SIZE, dtype=dtype)
    best, deadline = float("inf"), time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < deadline or best == float("inf"):
        started = time.process_time()
        torch.mm(a, b)
        best = min(best, max(time.process_time() - started, 1e-6))  # the clock may stand still
    return 2 * _PEAK_SIZE**3 * threads / best


class Meter:
    """Measures one process, from when it is made."""

    def __init__(self, device: torch.device, peak: float, energy: EnergyCounter | None) -> None:
        """peak: FLOP/s of this process's device, 0 if unknown."""
        self.peak = peak
        self._device, self._energy = device, energy
        self._flops = 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            # What earlier stages have kept in the heap would count to this one's peak.
            give_back_freed_memory()
            _forget_peak_memory()

    def count(self, config: ModelConfig, batch: Batch) -> None:
        """Count a batch that is about to be trained on."""
        self._flops += batch.positions * flops_per_token(config, batch.input_ids.shape[1])

    def spent(self) -> tuple[float, float]:
        """(FLOPs counted, joules drawn) since the last call."""
        flops, self._flops = self._flops, 0.0
        return flops, self._energy.joules() if self._energy else 0.0

    def figures(self, flops: float, joules: float, seconds: float, processes: int) -> dict[str, float]:
        """What is known of a step over all processes."""
        found = {"peak_memory_bytes": self.peak_memory_bytes()}
        if self.peak:
            found["mfu"] = flops / seconds / (self.peak * processes)
        if joules:
            found["joules"] = joules
        return found

    def peak_memory_bytes(self) -> float:
        """The most that tensors took on the GPU, or this process in main memory."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        return float(_peak_resident_bytes())


def _peak_resident_bytes() -> int:
    if sys.platform == "linux":
        with Path("/proc/self/status").open("rb") as stream:
            for line in stream:
                if line.startswith(b"VmHWM:"):
                    return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _forget_peak_memory() -> None:
    """Earlier stages of this process do not count; where the kernel will not forget, they do."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, proc(5)


def find_energy(device: torch.device, local_rank: int) -> EnergyCounter | None:
    """The counter of a GPU, or of this machine's processors for the first of its processes; None where none tells."""
    if device.type == "cuda":
        return NvmlEnergy.find(device)
    return RaplEnergy.find(POWERCAP) if local_rank == 0 else None


class RaplEnergy:
    """What the processors of this machine draw, other programs included (Linux powercap, Intel and AMD)."""

    def __init__(self, packages: list[Path]) -> None:
        self._ranges = {package: int((package / "max_energy_range_uj").read_text()) for package in packages}
        self._last = {package: self._read(package) for package in packages}

    @classmethod
    def find(cls, root: Path) -> "RaplEnergy | None":
        """The counters below `root`; None where there are none, or the kernel keeps them for its administrator."""
        try:
            # The kernel gives AMD's counters this name as well.
            packages = [path for path in sorted(root.glob("intel-rapl:*")) if _is_package(path)]
            return cls(packages) if packages else None
        except OSError:
            return None

    def joules(self) -> float:
        """Joules since the last call."""
        total = 0
        for package, before in self._last.items():
            now = self._last[package] = self._read(package)
            total += (now - before) % (self._ranges[package] + 1)  # the counter starts again at its end
        return total / 1e6

    def _read(self, package: Path) -> int:
        return int((package / "energy_uj").read_text())


def _is_package(path: Path) -> bool:
    """Memory and cores are counted in their package already."""
    return (path / "name").read_text().startswith("package")


class NvmlEnergy:
    """What one NVIDIA GPU draws, by the driver's counter (Volta and later)."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._last = self._millijoules()

    @classmethod
    def find(cls, device: torch.device) -> "NvmlEnergy | None":
        """The counter of `device`; None without the package nvidia-ml-py, or where the driver does not tell."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            # NVML numbers all cards, torch those of CUDA_VISIBLE_DEVICES: only the UUID is common to both.
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except pynvml.NVMLError:
            return None

    def joules(self) -> float:
        """Joules since the last call."""
        before, self._last = self._last, self._millijoules()
        return (self._last - before) / 1e3

    def _millijoules(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
