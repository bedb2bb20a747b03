"""Training beside its peers: speed of a step, share of the core's peak, and quality at equal time; one thread.

    python -m benchmarks.training --nanochat FOLDER [--quick] [--only speed peak quality ablation]
    python -m benchmarks.training --nanochat FOLDER --only quality --sweep-seconds 0 \\
        --set model.hidden_size=192 model.num_heads=3

`FOLDER` is a copy of https://github.com/karpathy/nanochat; without it the other peer runs alone. `--corpus` takes what
`bessemer run --corpus` takes, `--left-out` names the source of it that is never trained on. On a GPU, see
benchmarks/training_gpu.py. Pin the process to one core (`taskset -c 1`) for figures that can be repeated.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# One thread: before torch is imported, by this process and by those it starts.
os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks.child import in_child
from benchmarks.peers.nanochat_gpt import Nanochat, NanochatShape, NanochatTuning, check_nanochat
from benchmarks.report import Figure, conclude
from benchmarks.training_quality import Ours, Outcome, our_config, train_for
from benchmarks.training_speed import QUICK_SCALES, SCALES, compare, share_of_peak
from benchmarks.training_text import token_streams

VOCABULARY = 4096  # the demo's
SWEEP = [
    NanochatTuning(learning_rates=rates, weight_decay=decay, batch_tokens=batch)
    for rates, decay, batch in (
        (0.2, 0.0, 4096), (0.4, 0.0, 4096), (0.2, 0.5, 4096), (0.4, 0.5, 4096), (0.8, 0.5, 4096),
        (0.2, 0.5, 2048), (0.4, 0.5, 2048), (0.8, 0.5, 2048), (0.2, 0.5, 1024), (0.4, 0.5, 1024),
        (0.4, 0.0, 2048), (0.8, 0.0, 2048), (0.8, 0.0, 1024), (0.8, 0.5, 1024),
    )
]  # fmt: skip
BEST_KNOWN = NanochatTuning(learning_rates=0.8, weight_decay=0.0, batch_tokens=2048)  # of SWEEP: docs/LOG.md
ABLATIONS = (
    "", "attention_start=random", "model.qk_norm=false", "model.tied_embeddings=true", "optimizer.kind=adamw",
    "batches.initial_sequence_length=0", "batches.batch_tokens=2048", "schedule.kind=cosine", "schedule.kind=linear",
    "schedule.decay_fraction=0.3", "schedule.decay_fraction=0.7", "loop.average_fraction=0.1",
    "optimizer.matrix_learning_rate=0.01", "optimizer.matrix_learning_rate=0.04", "optimizer.max_grad_norm=0",
    "optimizer.embedding_learning_rate=0.01", "optimizer.head_learning_rate=0.004",
    "optimizer.head_learning_rate=0.016", "model.num_layers=3", "model.num_layers=6",
    "model.hidden_size=320 model.num_heads=5 model.num_kv_heads=5", "z_loss=1e-4", "model.num_kv_heads=4",
    "optimizer.weight_decay=0.1", "optimizer.momentum=0.85", "optimizer.momentum=0.95",
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What the command line asked for."""

    corpus: str
    left_out: str
    nanochat: Path | None
    folder: Path
    quick: bool
    seconds: float
    sweep_seconds: float
    seeds: int
    settings: tuple[str, ...]


def speed(bench: Bench) -> list[Figure]:
    """Show 1: ratios of tokens per CPU-second."""
    return [f for scale in (QUICK_SCALES if bench.quick else SCALES) for f in compare(scale, bench.nanochat)]


def peak(bench: Bench) -> list[Figure]:
    """Show 1: share of the matmul peak, and where the rest goes."""
    return [f for scale in (QUICK_SCALES if bench.quick else SCALES) for f in share_of_peak(scale)]


def quality(bench: Bench) -> list[Figure]:
    """Show 2: bits per byte after equal CPU time; nanochat with the best of what was swept."""
    why_not = check_nanochat(bench.nanochat)
    if why_not:
        print(why_not)
        return []
    best = BEST_KNOWN if bench.quick or not bench.sweep_seconds else best_tuning(bench)
    # One after the other: the whole benchmark is meant to be pinned to one core.
    ours = in_child(train_ours, bench, "", bench.seconds, 0)
    print(f"ours:     {ours.line()}", flush=True)
    theirs = in_child(train_nanochat, bench, best, bench.seconds)
    print(f"nanochat: {theirs.line()}", flush=True)
    return [
        Figure(f"bits per byte below nanochat's after {bench.seconds:.0f} CPU-s, in domain",
               theirs.in_domain - ours.in_domain, 0.15),  # 0.171 and 0.217 at 600 CPU-s (benchmarks/RESULTS.md)
        Figure("the same out of domain", theirs.out_of_domain - ours.out_of_domain, 0.0),
    ]  # fmt: skip


def best_tuning(bench: Bench) -> NanochatTuning:
    """The setting of SWEEP with the lowest bits per byte in domain after short runs."""
    found = {}
    for tuning in SWEEP:
        outcome = in_child(train_nanochat, bench, tuning, bench.sweep_seconds)
        print(f"{tuning}: {outcome.line()}", flush=True)
        found[tuning] = outcome.in_domain
    return min(found, key=lambda tuning: found[tuning])


def ablation(bench: Bench) -> list[Figure]:
    """One change of the demo's recipe at a time, each for the same CPU time."""
    for setting in ABLATIONS:
        for seed in range(bench.seeds):  # three seeds of one recipe differ by 0.002 (docs/LOG.md, 2026-11-27)
            outcome = in_child(train_ours, bench, setting, bench.sweep_seconds, seed)
            print(f"{setting or 'as it is'}, seed {seed}: {outcome.line()}", flush=True)
    return []


def train_ours(bench: Bench, settings: str, seconds: float, seed: int) -> Outcome:
    """The demo's pretraining with settings on top."""
    side = Ours(our_config(*bench.settings, *settings.split(), f"seed={seed}"), VOCABULARY)
    return train_for(side, token_streams(bench.corpus, bench.left_out, VOCABULARY, bench.folder), seconds, seed)


def train_nanochat(bench: Bench, tuning: NanochatTuning, seconds: float) -> Outcome:
    """The peer at our width and depth."""
    assert bench.nanochat is not None
    cfg = our_config(*bench.settings)
    side = Nanochat(bench.nanochat, NanochatShape(VOCABULARY, cfg.model.num_layers, cfg.model.hidden_size), tuning)
    return train_for(side, token_streams(bench.corpus, bench.left_out, VOCABULARY, bench.folder), seconds)


MEASUREMENTS = {"speed": speed, "peak": peak, "quality": quality, "ablation": ablation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two to four minutes: 4M only, 20 CPU-s of training")
    parser.add_argument("--nanochat", type=Path, help="folder of a copy of nanochat")
    parser.add_argument("--corpus", default="python-docs", help="any source that `bessemer run --corpus` takes")
    parser.add_argument("--left-out", default="library", help="part of the origin of documents never trained on")
    parser.add_argument("--seconds", type=float, default=600, help="CPU-seconds of training of each side")
    parser.add_argument("--sweep-seconds", type=float, default=120,
                        help="CPU-seconds of a run of sweep or ablation; 0: nanochat's best known setting")  # fmt: skip
    parser.add_argument("--set", nargs="*", default=[], help="pretrain settings of ours; width and depth of both sides")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each ablation")
    parser.add_argument("--folder", type=Path, help="where the tokens are kept; default: a temporary folder")
    parser.add_argument("--only", nargs="*", choices=sorted(MEASUREMENTS), default=["speed", "peak", "quality"])
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bessemer-bench-") as temporary:
        # 20 CPU-s follow the program through; they say little of quality (benchmarks/RESULTS.md).
        seconds = min(a.seconds, 20.0) if a.quick else a.seconds
        bench = Bench(a.corpus, a.left_out, a.nanochat, a.folder or Path(temporary), a.quick, seconds,
                      a.sweep_seconds, a.seeds, tuple(a.set))  # fmt: skip
        figures = []
        for name in a.only:
            figures += MEASUREMENTS[name](bench)
            sys.stdout.flush()
    conclude(figures)


if __name__ == "__main__":
    main()
