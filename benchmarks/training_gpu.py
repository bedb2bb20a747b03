"""Pretraining on one GPU: tokens/s, share of the card's bf16 peak, memory against forecast, compile time; beside HF.

    python -m benchmarks.training_gpu [--quick] [--only 124M 350M]

Not yet run on a GPU: on a CPU (`--device cpu --only tiny`) it has been followed through, where its memory is not
measured and its peak is a measured product of matrices.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.peers.llama_trainer import LlamaTrainer
from benchmarks.report import Figure, conclude
from flows.recipe import load_plan
from model.compilation import compile_layers
from model.flops import TrainingShape, flops_per_token, memory_forecast, num_parameters
from model.meter import data_sheet_peak
from model.objectives import NextToken
from model.shape import ModelConfig
from model.transformer import Transformer
from tasks.execution import Execution
from tasks.pretrain import PretrainConfig, model_shape
from tasks.training import place_objective

MEMORY_SHARE = 0.85  # of the card, that a micro-batch may fill by forecast


@dataclass(frozen=True)
class Scale:
    """A model size of the gpu-1 recipe: the depth dial decides its shape."""

    name: str
    settings: tuple[str, ...]
    vocab_size: int
    utilisation_goal: float
    micro_batches: int = 2  # of a step that is timed

    @property
    def config(self) -> PretrainConfig:
        """What gpu-1 trains with these settings."""
        return load_plan("gpu-1", self.settings).recipe.pretrain


SCALES = {
    "124M": Scale("124M", ("depth=12",), 32768, 0.0),
    "350M": Scale("350M", ("depth=18",), 32768, 0.5),
    "tiny": Scale(
        "tiny",
        ("depth=2", "pretrain.sequence_length=128", "pretrain.context_length=128", "pretrain.batch_tokens=1024"),
        512, 0.0,
    ),
}  # fmt: skip


class OneDevice:
    """All that `place_objective` asks of a run."""

    def __init__(self, device: str) -> None:
        self.execution = Execution(threads=1, device=device)


class Step:
    """One of our models, ready to take training steps on random tokens."""

    def __init__(self, scale: Scale, device: torch.device, micro_batch_tokens: int) -> None:
        cfg = scale.config
        transformer = Transformer(model_shape(cfg, scale.vocab_size))
        transformer.initialize(0)
        self.parallel = place_objective(OneDevice(device.type), cfg, NextToken(transformer))
        rows = micro_batch_tokens // cfg.sequence_length
        ids = torch.randint(0, scale.vocab_size, (rows, cfg.sequence_length + 1), device=device)
        self._part = {
            "input_ids": ids[:, :-1].contiguous(),
            "labels": ids[:, 1:].contiguous(),
            "label_bytes": torch.ones(rows, device=device),
        }
        self._micro_batches = scale.micro_batches
        self.tokens = scale.micro_batches * micro_batch_tokens

    def compile(self) -> None:
        """As `execution.compile` "layers" does."""
        compile_layers(self.parallel.objective.transformer, self.parallel.device)

    def __call__(self) -> None:
        """Gradients of all micro-batches, clipping, optimizer."""
        part: dict[str, Tensor] = self._part
        for number in range(1, self._micro_batches + 1):
            self.parallel.accumulate(part, 1 / self.tokens, last=number == self._micro_batches)
        self.parallel.step()


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """Wall time of one call."""
    started = now(device)
    work()
    return now(device) - started


def bf16_peak(device: torch.device) -> tuple[float, str]:
    """FLOP/s of the card and where the figure comes from: its data sheet, or a measured product for unknown cards."""
    if device.type == "cuda":
        peak = data_sheet_peak(torch.cuda.get_device_name(device))
        if peak:
            return peak, "its data sheet"
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = min(seconds_of(lambda: torch.mm(a, b), device) for _ in range(10))
    return 2 * size**3 / best, "a measured product of matrices"


def largest_micro_batch(config: ModelConfig, cfg: PretrainConfig, memory_bytes: float) -> int:
    """The most tokens, a power of two of rows, whose forecast fits; at most 65,536, or the batch."""
    tokens = cfg.sequence_length
    while (
        2 * tokens <= min(65_536, cfg.batch_tokens)
        and forecast_bytes(config, cfg, 2 * tokens) < MEMORY_SHARE * memory_bytes
    ):
        tokens *= 2
    return tokens


def forecast_bytes(config: ModelConfig, cfg: PretrainConfig, tokens: int) -> int:
    """What model/flops.py says of a step on a GPU."""
    shape = TrainingShape(
        tokens=tokens, seq_len=cfg.sequence_length, precision=cfg.precision, optimizer=cfg.optimizer, layers="plain"
    )
    return memory_forecast(config, shape).total


def measure(scale: Scale, device: torch.device, steps: int) -> list[Figure]:
    """One scale: ours as it is, ours with compiled layers, Hugging Face's Trainer."""
    cfg = scale.config
    config = model_shape(cfg, scale.vocab_size)
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else 4e9
    micro_batch = largest_micro_batch(config, cfg, memory)
    peak, origin = bf16_peak(device)
    print(f"\n{scale.name}: {num_parameters(config) / 1e6:.0f}M parameters, {micro_batch:,} tokens at once, peak "
          f"{peak / 1e12:.3g} TFLOP/s ({origin})")  # fmt: skip
    step = Step(scale, device, micro_batch)
    print(f"  first step: {seconds_of(step, device):.1f} s, with what torch compiles of attention")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    tokens_per_s = step.tokens / median(seconds_of(step, device) for _ in range(steps))
    used = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    step.compile()
    print(f"  compiling the layers: {seconds_of(step, device):.1f} s")
    compiled = step.tokens / median(seconds_of(step, device) for _ in range(steps))
    del step
    if on_gpu:
        torch.cuda.empty_cache()
    rows = micro_batch // cfg.sequence_length
    trainer = LlamaTrainer(config, scale.micro_batches * rows, rows, cfg.sequence_length)
    peer_seconds = trainer.step_seconds(steps, lambda: now(device), on_cpu=not on_gpu)
    peer = scale.micro_batches * micro_batch / median(peer_seconds)
    flops = flops_per_token(config, cfg.sequence_length)
    for name, speed in (("ours", tokens_per_s), ("ours, layers compiled", compiled), ("HF Trainer", peer)):
        print(f"  {name:24} {speed:10,.0f} tokens/s, {speed * flops / peak:.1%} of the peak")
    figures = [
        Figure(f"{scale.name}: share of the bf16 peak (MFU)", tokens_per_s * flops / peak, scale.utilisation_goal),
        Figure(f"{scale.name}: tokens/s over HF Trainer", tokens_per_s / peer, 1.0),
    ]
    if on_gpu:
        forecast = forecast_bytes(config, cfg, micro_batch)
        print(f"  memory: {used / 1e9:.1f} GB used, {forecast / 1e9:.1f} GB forecast")
        figures.append(Figure(f"{scale.name}: memory off its forecast", abs(used / forecast - 1), 0.1, "lower"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 timed steps instead of 20")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="*", choices=sorted(SCALES), default=["124M", "350M"])
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu --only tiny follows the script through on a CPU")
    device = torch.device(arguments.device)
    steps = 5 if arguments.quick else 20
    conclude([figure for name in arguments.only for figure in measure(SCALES[name], device, steps)])


if __name__ == "__main__":
    main()
