"""Pretraining on one GPU: tokens/s, share of the card's bf16 peak, memory against forecast, compile time; beside HF.

    python -m benchmarks.training_gpu [--quick] [--only 124M 350M]

On a CPU (`--device cpu --only tiny`) it can be followed through; memory is then not measured, and the peak is that of a
product of matrices.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.memory import Layers, TrainingShape, memory_forecast
from benchmarks.peers.llama_trainer import LlamaTrainer
from benchmarks.report import Figure, conclude
from flows.recipe import load_plan
from model.network.flops import flops_per_token, num_parameters
from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from model.training.compile import compile_layers
from model.training.meter import data_sheet_peak
from model.training.objectives import NextToken
from tasks.mechanism.execution import Execution
from tasks.train.job import place_objective
from tasks.train.pretrain import PretrainConfig

MEMORY_SHARE = 0.85  # of the card, that a micro-batch may fill by forecast


@dataclass(frozen=True)
class Scale:
    """A model size of the gpu-1 recipe: the depth dial decides its shape."""

    name: str
    settings: tuple[str, ...]
    vocab_size: int
    utilisation_goal: float

    @property
    def config(self) -> PretrainConfig:
        """What gpu-1 trains with these settings."""
        return load_plan("gpu-1", self.settings).recipe.pretrain

    @property
    def shape(self) -> ModelConfig:
        """The model itself."""
        return self.config.model.shape(self.vocab_size)


SCALES = {
    "124M": Scale("124M", ("depth=12",), 32768, 0.0),
    "350M": Scale("350M", ("depth=18",), 32768, 0.5),
    "tiny": Scale(
        "tiny",
        (
            "depth=2", "pretrain.batches.sequence_length=128", "pretrain.batches.batch_tokens=1024",
            "pretrain.model.context_length=128", "sft.batches.sequence_length=128", "dpo.batches.sequence_length=128",
        ),
        512, 0.0,
    ),
}  # fmt: skip


DOCUMENT_TOKENS = 800  # of the packed documents, on average
PEER_SHARE = 4  # the Trainer takes a fourth of our micro-batch at once: it holds all logits of it in fp32


class OneDevice:
    """All that `place_objective` asks of a run."""

    def __init__(self, device: str) -> None:
        self.execution = Execution(threads=1, device=device)


class Step:
    """One of our models, ready to take training steps of the recipe's size on random tokens."""

    def __init__(self, scale: Scale, device: torch.device, micro_batch_tokens: int) -> None:
        cfg = scale.config
        transformer = Transformer(scale.shape)
        transformer.initialize(0)
        self.parallel = place_objective(OneDevice(device.type), cfg, NextToken(transformer))
        rows = micro_batch_tokens // cfg.batches.sequence_length
        ids = torch.randint(0, scale.vocab_size, (rows, cfg.batches.sequence_length + 1), device=device)
        self._part: dict[str, Tensor] = {
            "input_ids": ids[:, :-1].contiguous(),
            "labels": ids[:, 1:].contiguous(),
            # Only bits per byte need it, which nobody reads here.
            "label_bytes": torch.ones(rows, device=device),
        }
        self._micro_batches = cfg.batches.batch_tokens // micro_batch_tokens
        self.tokens = cfg.batches.batch_tokens

    def compile(self) -> None:
        """As `execution.compile` "layers" does."""
        compile_layers(self.parallel.objective.transformer, self.parallel.device)

    def pack_documents(self) -> None:
        """From now on rows hold several documents, as `document_attention` has it."""
        ids = self._part["input_ids"]
        # Each token ends a document by chance: lengths are geometric, with a mean of DOCUMENT_TOKENS.
        self._part["document_ids"] = (torch.rand(ids.shape, device=ids.device) < 1 / DOCUMENT_TOKENS).long().cumsum(1)

    def __call__(self) -> None:
        """Gradients of all micro-batches, clipping, optimizer."""
        for number in range(1, self._micro_batches + 1):
            self.parallel.accumulate(self._part, 1 / self.tokens, last=number == self._micro_batches)
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
    size = 8192 if device.type == "cuda" else 1024  # an H200: 802 TFLOP/s of 989 (benchmarks/RESULTS.md)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = min(seconds_of(lambda: torch.mm(a, b), device) for _ in range(10))
    return 2 * size**3 / best, "a measured product of matrices"


def largest_micro_batch(config: ModelConfig, cfg: PretrainConfig, memory_bytes: float) -> int:
    """The most tokens, a power of two of rows, whose forecast fits; at most 65,536, or the batch."""
    tokens = cfg.batches.sequence_length
    while (
        2 * tokens <= min(65_536, cfg.batches.batch_tokens)
        and forecast_bytes(config, cfg, 2 * tokens) < MEMORY_SHARE * memory_bytes
    ):
        tokens *= 2
    return tokens


def forecast_bytes(config: ModelConfig, cfg: PretrainConfig, tokens: int, layers: Layers = "plain") -> int:
    """What model/network/flops.py says of a step on a GPU."""
    shape = TrainingShape(
        tokens=tokens, seq_len=cfg.batches.sequence_length, precision=cfg.precision, optimizer=cfg.optimizer.kind,
        layers=layers, device="cuda",
    )  # fmt: skip
    return memory_forecast(config, shape).total


@dataclass(frozen=True)
class Rig:
    """What is measured on what: prints each way of training as soon as it is known."""

    scale: Scale
    device: torch.device
    steps: int
    micro_batch: int  # tokens
    peak: float  # FLOP/s

    def report(self, name: str, tokens_per_s: float) -> None:
        """A line."""
        print(
            f"  {name:26} {tokens_per_s:10,.0f} tokens/s, {self.utilisation(tokens_per_s):.1%} of the peak", flush=True
        )

    def utilisation(self, tokens_per_s: float) -> float:
        """Share of the peak."""
        return tokens_per_s * flops_per_token(self.scale.shape, self.scale.config.batches.sequence_length) / self.peak

    def forecast(self, layers: Layers) -> int:
        """Bytes of tensors at their most."""
        return forecast_bytes(self.scale.shape, self.scale.config, self.micro_batch, layers)


@dataclass(frozen=True)
class Speed:
    """What a way of training reached."""

    tokens_per_s: float
    peak_bytes: int  # of tensors; 0 on a CPU


def speed_of(step: Step, rig: Rig, name: str) -> Speed:
    """The median step, once it has been compiled."""
    on_gpu = rig.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(rig.device)  # else the peak of the way measured before would stay
    tokens_per_s = step.tokens / median(seconds_of(step, rig.device) for _ in range(rig.steps))
    rig.report(f"ours, {name}", tokens_per_s)
    return Speed(tokens_per_s, torch.cuda.max_memory_allocated(rig.device) if on_gpu else 0)


def our_speeds(rig: Rig) -> dict[Layers, Speed]:
    """Ours by the layers' way: torch's own functions, and compiled, also with packed documents as gpu-1 trains."""
    step = Step(rig.scale, rig.device, rig.micro_batch)
    print(f"  first step: {seconds_of(step, rig.device):.1f} s, with what torch compiles of the loss")
    found: dict[Layers, Speed] = {"plain": speed_of(step, rig, "plain")}
    step.compile()
    print(f"  compiling the layers: {seconds_of(step, rig.device):.1f} s")
    found["compiled"] = speed_of(step, rig, "compiled")
    if rig.device.type == "cuda":  # a CPU's attention to documents does not compile
        step.pack_documents()
        print(f"  compiling attention to documents: {seconds_of(step, rig.device):.1f} s")
        speed_of(step, rig, "compiled, documents")
    return found


def peer_tokens_per_s(rig: Rig) -> float:
    """Hugging Face's Trainer with the same batch."""
    cfg = rig.scale.config
    row = cfg.batches.sequence_length
    rows = max(1, rig.micro_batch // PEER_SHARE // row)
    trainer = LlamaTrainer(rig.scale.shape, cfg.batches.batch_tokens // row, rows, row)
    seconds = trainer.step_seconds(rig.steps, lambda: now(rig.device), on_cpu=rig.device.type == "cpu")
    tokens_per_s = cfg.batches.batch_tokens / median(seconds)
    rig.report("HF Trainer", tokens_per_s)
    return tokens_per_s


def measure(scale: Scale, device: torch.device, steps: int) -> list[Figure]:
    """One scale: ours in three ways, Hugging Face's Trainer, and memory against its forecast."""
    cfg = scale.config
    config = scale.shape
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else 4e9  # a CPU only follows through
    peak, origin = bf16_peak(device)
    rig = Rig(scale, device, steps, largest_micro_batch(config, cfg, memory), peak)
    print(f"\n{scale.name}: {num_parameters(config) / 1e6:.0f}M parameters, steps of "
          f"{cfg.batches.batch_tokens:,} tokens, {rig.micro_batch:,} at once, "
          f"peak {peak / 1e12:.3g} TFLOP/s ({origin})", flush=True)  # fmt: skip
    ours = our_speeds(rig)
    if on_gpu:
        torch.cuda.empty_cache()  # the Trainer comes next, in this process
    best = ours["compiled"].tokens_per_s
    name = f"{scale.name}: share of the bf16 peak (MFU)"
    figures = [Figure(name, rig.utilisation(best), scale.utilisation_goal)]
    for layers, speed in ours.items() if on_gpu else ():
        print(f"  memory, {layers}: {speed.peak_bytes / 1e9:.1f} GB used, {rig.forecast(layers) / 1e9:.1f} GB forecast")
        off = abs(speed.peak_bytes / rig.forecast(layers) - 1)
        figures.append(Figure(f"{scale.name}: memory off its forecast, {layers}", off, 0.1, "lower"))
    figures.append(Figure(f"{scale.name}: tokens/s over HF Trainer", best / peer_tokens_per_s(rig), 1.0))
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
