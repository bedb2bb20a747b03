"""What a step costs: utilisation by hand, memory that grows with the shape and is forgotten, energy from real files."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.memory import TrainingShape, memory_forecast
from model.network.head import linear_cross_entropy
from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from model.training import meter
from model.training.data import Batch
from model.training.meter import Meter, NvmlEnergy, RaplEnergy, data_sheet_peak, find_energy, measured_cpu_peak
from model.training.packing import join_sequences, lay_out

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    vocab_size=100, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, intermediate_size=16,
    context_length=32,
)  # fmt: skip
# Matrices: q and o 8 * 8, k and v 8 * 4, MLP 3 * 8 * 16, head 100 * 8. Attention over 10 keys: 4 * 8 * 10.
FLOPS_OF_A_TOKEN = 3 * (2 * (64 + 64 + 32 + 32 + 384 + 800) + 320)


def test_utilisation_by_hand() -> None:
    counter = Meter(CPU, 2e6, None)
    ids = np.zeros((5, 10), dtype=np.int64)
    counter.count(CONFIG, Batch(ids, ids, np.zeros(5, dtype=np.float32)))
    counter.count(CONFIG, Batch(ids[:1], ids[:1], np.zeros(1, dtype=np.float32)))
    flops, joules = counter.spent()
    assert flops == 60 * FLOPS_OF_A_TOKEN == 60 * 9216
    assert counter.spent() == (0, 0)
    found = counter.figures(flops, joules, seconds=0.5, processes=2)
    assert found["mfu"] == pytest.approx(60 * 9216 / 0.5 / 4e6)
    assert "joules" not in found


def test_padding_is_no_work() -> None:
    sequences = join_sequences([list(range(8)), list(range(5))], [[True] * 8, [True] * 5])
    batch = lay_out(sequences, [[0, 1]], 20, np.zeros(100, dtype=np.float32))
    assert batch.positions == 7 + 4 < batch.input_ids.size


def test_an_unknown_peak_says_nothing() -> None:
    assert data_sheet_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert data_sheet_peak("NVIDIA H100 PCIe") == 756e12
    assert data_sheet_peak("NVIDIA H200 NVL") == data_sheet_peak("NVIDIA H100 NVL") == 835e12
    assert data_sheet_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert data_sheet_peak("NVIDIA L40S") == 362e12
    assert data_sheet_peak("NVIDIA L40") == 181e12
    assert data_sheet_peak("NVIDIA L4") == 121e12
    assert data_sheet_peak("NVIDIA GeForce RTX 4090 Laptop GPU") == 0
    assert data_sheet_peak("NVIDIA GB200") == 0
    assert data_sheet_peak("NVIDIA GeForce GTX 1080") == 0
    assert "mfu" not in Meter(CPU, 0.0, None).figures(1e9, 0.0, 1.0, 1)


def test_the_peak_of_a_cpu_is_measured() -> None:
    peak = measured_cpu_peak("fp32", 1)
    assert 1e9 < peak < 1e13


def train_once(hidden_size: int, rows: int) -> tuple[float, int]:
    """Peak memory of one forward and backward pass, and what it is forecast to take at least."""
    config = ModelConfig(
        vocab_size=2000, hidden_size=hidden_size, num_layers=2, num_heads=4, num_kv_heads=4,
        head_dim=hidden_size // 4, intermediate_size=4 * hidden_size, context_length=64,
    )  # fmt: skip
    counter = Meter(CPU, 0.0, None)
    before = counter.peak_memory_bytes()
    model = Transformer(config)
    ids = torch.zeros(rows, 64, dtype=torch.long)
    linear_cross_entropy(model.hidden(ids), model.head_weight, ids).backward()
    forecast = memory_forecast(config, TrainingShape(tokens=64 * rows, seq_len=64, precision="fp32", layers="plain"))
    return counter.peak_memory_bytes() - before, forecast.weights + forecast.gradients + forecast.activations


def test_memory_grows_with_the_shape() -> None:
    small, _ = train_once(32, 1)
    wide, forecast_wide = train_once(512, 1)
    long, forecast_long = train_once(512, 20)
    assert small < wide < long
    assert wide > 0.9 * forecast_wide > 60e6
    assert 0.9 * forecast_long < long < 2 * forecast_long


def test_memory_of_earlier_stages_is_forgotten() -> None:
    first = Meter(CPU, 0.0, None)
    size = 300_000_000
    with mmap.mmap(-1, size) as block:
        block.write(b"x" * size)
        at_most = first.peak_memory_bytes()
    # The kernel adds up pages from counters of each core, which may be some dozen pages behind.
    assert first.peak_memory_bytes() == pytest.approx(at_most, abs=0.01 * size)
    assert Meter(CPU, 0.0, None).peak_memory_bytes() < at_most - 0.9 * size


def package(root: Path, zone: str, name: str, microjoules: int, most: int = 1_000_000_000) -> Path:
    folder = root / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_energy_of_two_packages(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = package(tmp_path, "intel-rapl:1", "package-1", 999_000_000)
    memory = package(tmp_path, "intel-rapl:0:0", "dram", 0)
    counter = RaplEnergy.find(tmp_path)
    assert counter is not None and counter.joules() == 0
    first.write_text("7500000\n")
    second.write_text("1999999\n")  # it passed its end
    memory.write_text("1000000\n")
    assert counter.joules() == pytest.approx(2.5 + 3.0)
    first.write_text("8500000\n")
    found = Meter(CPU, 0.0, counter)
    assert found.figures(*found.spent(), 1.0, 1)["joules"] == pytest.approx(1.0)


def test_a_machine_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RaplEnergy.find(tmp_path / "none") is None
    package(tmp_path, "intel-rapl:0", "package-0", 0).unlink()
    assert RaplEnergy.find(tmp_path) is None  # as where only the administrator may read
    monkeypatch.setattr(meter, "POWERCAP", tmp_path / "one")
    package(tmp_path / "one", "intel-rapl:0", "package-0", 0)
    assert find_energy(CPU, 0) is not None
    assert find_energy(CPU, 1) is None  # or two processes would count the same package twice
    if not torch.cuda.is_available():
        assert NvmlEnergy.find(CPU) is None
