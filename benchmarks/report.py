"""How every benchmark ends: the machine's facts, one line per figure, and exit code 1 if one is short of its goal."""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """A measured value and the goal it is held against."""

    name: str
    value: float
    goal: float
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the goal is met."""
        return self.value >= self.goal if self.better == "higher" else self.value <= self.goal

    def line(self) -> str:
        """`name: value (goal >= 40) ok`."""
        sign = "≥" if self.better == "higher" else "≤"
        verdict = "ok" if self.reached else "short"
        return f"{self.name}: {self.value:.4g}{self.unit} (goal {sign} {self.goal:.4g}{self.unit}) {verdict}"


def machine_facts() -> str:
    """Processor, cores, load and Python: what a reader needs to judge a ratio."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model n")]
        cpu = names[0] if names else cpu
    # Ratios hold under load, absolute rates do not (docs/LOG.md): who reads one must see it.
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{cpu}, {os.cpu_count()} cores, load {load}, Python {platform.python_version()}, {platform.system()}"


def conclude(figures: Sequence[Figure]) -> None:
    """Print the figures and leave with 1 if one is short."""
    print(f"\n{machine_facts()}")
    for figure in figures:
        print(figure.line())
    sys.exit(0 if all(figure.reached for figure in figures) else 1)
