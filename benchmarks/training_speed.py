"""Tokens per CPU-second of one core, optimizer step included, beside nanochat and Hugging Face at equal shape.

Each side lives in a process of its own and they take turns, so that what else the machine does falls on all alike.
"""

import gc
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.peers.llama_trainer import LlamaTrainer
from benchmarks.peers.nanochat_gpt import Nanochat, NanochatShape, NanochatTuning, check_nanochat
from benchmarks.report import Figure
from benchmarks.training_quality import Ours
from flows.recipe import load_plan
from model.network.flops import flops_per_token, num_parameters
from model.network.shape import ModelConfig
from tasks.train.pretrain import PretrainConfig

SideName = Literal["ours", "nanochat", "nanochat, not compiled", "Hugging Face"]
ROW, ROWS_AT_ONCE = 256, 16  # 4,096 tokens at once: the most per CPU-s at 31M parameters (docs/LOG.md, 2026-11-25)


@dataclass(frozen=True)
class Scale:
    """A model size: the depth dial decides its shape and the tokens of a step."""

    name: str
    depth: int
    vocab_size: int
    rounds: int
    steps: int  # of a round

    @property
    def config(self) -> PretrainConfig:
        """What the recipe `laptop` trains at this depth, with rows of one length."""
        return load_plan("laptop", [f"depth={self.depth}", f"pretrain.batches.sequence_length={ROW}"]).recipe.pretrain

    @property
    def shape(self) -> ModelConfig:
        """The model."""
        return self.config.model.shape(self.vocab_size)


SCALES = (Scale("4M", 4, 4096, rounds=5, steps=8), Scale("30M", 8, 8192, rounds=3, steps=2))
QUICK_SCALES = (Scale("4M", 4, 4096, rounds=2, steps=4),)


def compare(scale: Scale, nanochat: Path | None) -> list[Figure]:
    """Ratios to the peers, from medians over the steps of all rounds."""
    why_not = check_nanochat(nanochat)
    sides: list[SideName] = ["ours", "Hugging Face"]
    if why_not:
        print(why_not)
    else:
        sides += ["nanochat", "nanochat, not compiled"]
    found = _take_turns(scale, sides, nanochat)
    speed = {name: scale.config.batches.batch_tokens / median(seconds) for name, seconds in found.items()}
    shape = scale.shape
    print(
        f"\n{scale.name}: {shape.num_layers} layers of {shape.hidden_size}, "
        f"{scale.config.batches.batch_tokens:,} tokens a step"
    )
    for name in sides:
        spread = (max(found[name]) - min(found[name])) / median(found[name])
        print(f"  {name:24} {speed[name]:8,.0f} tokens per CPU-s ({len(found[name])} steps, spread {spread:.0%})")
    ratios = [Figure(f"{scale.name}: tokens per CPU-s over HF Trainer", speed["ours"] / speed["Hugging Face"], 1.4)]
    if not why_not:
        ratios += [
            Figure(f"{scale.name}: tokens per CPU-s over nanochat, {name}", speed["ours"] / speed[side], 2.0)
            for side, name in (("nanochat", "compiled"), ("nanochat, not compiled", "not compiled"))
        ]
    return ratios


def _take_turns(scale: Scale, sides: list[SideName], nanochat: Path | None) -> dict[SideName, list[float]]:
    spawn = multiprocessing.get_context("spawn")
    pools = {
        side: ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(side, scale, nanochat)) for side in sides
    }
    found: dict[SideName, list[float]] = {side: [] for side in sides}
    try:
        for side in sides:
            pools[side].submit(_time_steps, 1).result()  # what is compiled, compiles now
        for _ in range(scale.rounds):
            for side in sides:
                found[side] += pools[side].submit(_time_steps, scale.steps).result()
    finally:
        for pool in pools.values():
            pool.shutdown()
    return found


_time: Callable[[int], list[float]]


def _start(side: SideName, scale: Scale, nanochat: Path | None) -> None:
    """In a side's process: build it and keep how its steps are timed."""
    global _time
    torch.set_num_threads(1)
    _time = _timer(side, scale, nanochat)


def _time_steps(steps: int) -> list[float]:
    return _time(steps)


def _timer(side: SideName, scale: Scale, nanochat: Path | None) -> Callable[[int], list[float]]:
    rows = scale.config.batches.batch_tokens // ROW
    if side == "Hugging Face":
        return LlamaTrainer(scale.shape, rows, ROWS_AT_ONCE, ROW).step_seconds
    parts = random_parts(scale)
    if side == "ours":
        ours = Ours(scale.config, scale.vocab_size)
        return lambda steps: [_seconds(lambda: our_step(ours, parts)) for _ in range(steps)]
    assert nanochat is not None
    shape = NanochatShape(scale.vocab_size, scale.depth, scale.shape.hidden_size)
    peer = Nanochat(nanochat, shape, NanochatTuning(batch_tokens=scale.config.batches.batch_tokens))
    if side == "nanochat, not compiled":
        peer.compiled = peer.model
    return lambda steps: [_seconds(lambda: peer.accumulate_and_step(parts, 0.5)) for _ in range(steps)]


def _seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def random_parts(scale: Scale) -> list[dict[str, Tensor]]:
    """The batch of a step in parts of ROWS_AT_ONCE rows."""
    stream = torch.Generator().manual_seed(0)
    # [rows, ROW + 1], the labels one further. Random: what tokens say costs no time.
    ids = torch.randint(0, scale.vocab_size, (scale.config.batches.batch_tokens // ROW, ROW + 1), generator=stream)
    return [
        {
            "input_ids": part[:, :-1].contiguous(),
            "labels": part[:, 1:].contiguous(),
            "label_bytes": torch.ones(len(part)),
        }
        for part in torch.split(ids, ROWS_AT_ONCE)
    ]


def our_step(ours: Ours, parts: list[dict[str, Tensor]]) -> None:
    """As the loop takes it: gradients of each part, clipping, optimizer."""
    accumulate(ours, parts)
    ours.parallel.step()


def accumulate(ours: Ours, parts: list[dict[str, Tensor]]) -> None:
    """The gradients alone."""
    tokens = sum(part["labels"].numel() for part in parts)
    for number, part in enumerate(parts, 1):
        # Over the tokens of the whole step, so that parts of any size add up to the mean of the batch.
        ours.parallel.accumulate(part, 1 / tokens, last=number == len(parts))


def matmul_peak() -> float:
    """The most bf16 FLOP/s that this core reaches in a product of two large matrices."""
    best = 0.0
    for m, k, n in ((4096, 512, 512), (4096, 1024, 1024), (2048, 2048, 2048), (1024, 4096, 1024)):
        a, b = torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16()
        for _ in range(8):
            best = max(best, 2 * m * k * n / _seconds(lambda a=a, b=b: torch.mm(a, b)))
    return best


def share_of_peak(scale: Scale) -> list[Figure]:
    """Model FLOPs of a step (PaLM's count, as model/network/flops.py) over time, as a share of the matmul peak."""
    torch.set_num_threads(1)
    ours, parts = Ours(scale.config, scale.vocab_size), random_parts(scale)
    our_step(ours, parts)
    shares = []
    for _ in range(scale.rounds):
        # Before and after, the higher counts: a shared core's clock swings, and a low peak would flatter the share.
        before = matmul_peak()
        seconds = median(_seconds(lambda: our_step(ours, parts)) for _ in range(scale.steps))
        peak = max(before, matmul_peak())
        flops = flops_per_token(scale.shape, ROW) * scale.config.batches.batch_tokens
        shares.append(flops / seconds / peak)
        print(f"  {scale.name}: {flops / seconds / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s")
    print_profile(scale, ours, parts)
    name = f"{scale.name} ({num_parameters(scale.shape) / 1e6:.1f}M): share of the core's bf16 matmul peak"
    gc.collect()
    return [Figure(name, median(shares), 0.6 if scale.name == "30M" else 0.0)]  # no goal at 4M


PARTS_OF_A_STEP = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::_int_mm")),
    ("INT8 and back", ("_Int8Linear",)),
    ("INT8, SwiGLU and back", ("_Int8MLP",)),
    ("products of attention", ("aten::bmm", "aten::baddbmm")),
    ("softmax of attention", ("_BlockAttention",)),
    ("SwiGLU", ("_SwiGLU",)),
    ("norms", ("_AddRMSNorm",)),
    ("QK-norm and rotation", ("_SplitHeads",)),
    ("loss on logits", ("_LinearCrossEntropy",)),
    ("casts and copies", ("aten::copy_",)),
)
PARTS_OF_AN_UPDATE = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")),
    ("casts and copies", ("aten::copy_",)),
)


def print_profile(scale: Scale, ours: Ours, parts: list[dict[str, Tensor]]) -> None:
    """Where the time of a step goes, by torch's profiler; the profiler itself adds a few per cent."""
    rows: list[tuple[str, float]] = []
    phases = (
        ("", PARTS_OF_A_STEP, lambda: accumulate(ours, parts)),
        ("optimizer: ", PARTS_OF_AN_UPDATE, ours.parallel.step),
    )
    for phase, names, work in phases:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            work()
        own = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
        for name, keys in names:
            spent = sum(seconds for key, seconds in own.items() if key.removesuffix("Backward") in keys)
            if spent:
                rows.append((phase + name, spent))
                own = {key: seconds for key, seconds in own.items() if key.removesuffix("Backward") not in keys}
        rows.append((phase + "all else", sum(own.values())))
    total = sum(seconds for _, seconds in rows)
    print(f"\n{scale.name}: where {total:.2f} s of a step go")
    for name, seconds in rows:
        print(f"  {name:32} {seconds / total:6.1%}")
