"""What a document costs each data stage, fitted over four sizes, and what that makes of 10^9 documents.

Usage: python -m benchmarks.scale [--quick] [--corpus SPEC] [--only stages index] [--signatures N]

Every stage runs in a fresh process on one worker, first on WARM_UP documents, which is what starting costs, then
REPEATS times on those that are measured, of which the least counts. Cost is a straight line over their number: its
slope is the price of a document. The index is simulated with random signatures, its worst case for size: every document
is kept and every bucket is new.
"""

# ruff: noqa: E402 (threads are limited before numpy and its like are loaded)

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

for variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ[variable] = "1"

import numpy as np
from numpy.typing import NDArray

from benchmarks.child import in_child
from benchmarks.data_corpus import plant, real_texts, write_jsonl
from benchmarks.data_pipeline import all_kept, cpu_seconds, train_tokenizer
from benchmarks.report import Figure, conclude
from model.corpus.minhash import band_keys
from model.kernels.heap import give_back_freed_memory
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, Outcome, Stage, StageConfig, obtain
from tasks.text.dedup.dedup import DedupConfig, dedup, index_parameters
from tasks.text.dedup.index import DedupIndex, candidate_sketches, chain_keys, find
from tasks.text.dedup.segment import Segment
from tasks.text.filter import FilterConfig, filter
from tasks.text.ingest import IngestConfig, ingest
from tasks.text.source import resolve_source
from tasks.tokens.pack import PackConfig, pack

DOCUMENTS, TOKENS = 1e9, 1e13
SIZES = 4
WARM_UP = 200
REPEATS = 3
STAGES: dict[str, Stage[Any]] = {stage.name: stage for stage in (ingest, filter, dedup, pack)}
SHARDS = 64
"""Shards of the simulated index: merged twice, like any index of 64 to 511 shards."""
MOST_ASKED = 10_000
COMMIT_MEGABYTES = 300
"""What a commit and its merges may take, whatever the size of the index."""


@dataclass(frozen=True)
class Cost:
    """What one run took: CPU seconds, those before it for starting, bytes written, the peak of resident memory."""

    documents: int
    seconds: float
    start_seconds: float
    bytes: int
    peak_bytes: int


def resident_bytes(which: Literal["VmHWM", "VmRSS"]) -> int:
    """Peak or present resident memory of this process alone (getrusage counts the parent's from before the exec)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {which}: this benchmark needs Linux.")


@dataclass(frozen=True)
class Step:
    """CPU seconds of a call, and how far it lifted resident memory above what it was before."""

    seconds: float
    bytes: int


def measured(function: Callable[[], object]) -> Step:
    """Call and measure."""
    give_back_freed_memory()  # memory that was freed but not given back would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is now what is resident
    before, started = resident_bytes("VmRSS"), time.process_time()
    function()
    return Step(time.process_time() - started, resident_bytes("VmHWM") - before)


@dataclass(frozen=True)
class Call:
    """A stage call to measure."""

    stage: str
    config: StageConfig
    inputs: dict[str, Any]

    def build(self, home: Path) -> Outcome:
        """Build it on one worker."""
        return obtain(STAGES[self.stage], self.config, self.inputs, Execution(home=home, workers=1))


def run_call(call: Call, warm_up: Call | None, home: Path, documents: int) -> tuple[Artifact, Cost]:
    """Build a stage, after another call of it if there is one; its artifact, and its cost: the least of REPEATS."""
    start = cpu_seconds_elsewhere(warm_up) if warm_up else 0.0
    before = cpu_seconds()
    built = call.build(home)
    seconds, peak = cpu_seconds() - before, resident_bytes("VmHWM")
    seconds = min(seconds, *(cpu_seconds_elsewhere(call) for _ in range(REPEATS - 1)))
    return built.artifact, Cost(documents, seconds, start, built.manifest.size_bytes, peak)


def cpu_seconds_elsewhere(call: Call) -> float:
    """What building costs in a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        before = cpu_seconds()
        call.build(Path(home))
        return cpu_seconds() - before


@dataclass(frozen=True)
class Measured:
    """The calls of the stages at one size and their costs, the index that dedup left, the tokens that pack wrote."""

    calls: dict[str, Call]
    costs: dict[str, Cost]
    index_bytes: int
    documents: int
    tokens: int


def stages_at(texts: list[str], tokenizer: Artifact, folder: Path, warm_up: Measured | None = None) -> Measured:
    """Ingest, filter, dedup and pack these texts, each stage in a process of its own."""
    home, count = folder / "home", len(texts)
    corpus = resolve_source(str(write_jsonl(texts, folder / "text" / "documents.jsonl").parent), home / "cache")
    calls: dict[str, Call] = {}
    costs: dict[str, Cost] = {}

    def carry_out(stage: Stage[Any], config: StageConfig, **inputs: Any) -> Artifact:
        call = calls[stage.name] = Call(stage.name, config, inputs)
        before = warm_up.calls[stage.name] if warm_up else None
        artifact, costs[stage.name] = in_child(run_call, call, before, home, count)
        return artifact

    documents = carry_out(ingest, IngestConfig(), corpus=corpus)
    filtered = carry_out(filter, FilterConfig(), documents=documents)
    unique = carry_out(dedup, DedupConfig(), documents=documents, filtered=filtered)
    judged = {"filtered": filtered, "deduplicated": unique, "decontaminated": all_kept(documents, folder / "clean")}
    tokens = carry_out(pack, PackConfig(validation_share=0.05), documents=documents, tokenizer=tokenizer, **judged)
    index = sum(path.stat().st_size for path in (home / "index").rglob("*.npy"))
    written = sum(path.stat().st_size for path in tokens.path.glob("*.bin")) // 2  # uint16
    return Measured(calls, costs, index, count, written)


@dataclass(frozen=True)
class Line:
    """A least-squares line and the share of the variance that it explains."""

    slope: float
    intercept: float
    r2: float


def fit(x: list[float], y: list[float]) -> Line:
    """The line through the points."""
    slope, intercept = np.polyfit(x, y, 1)
    residue = np.asarray(y) - (slope * np.asarray(x) + intercept)
    spread = float(np.sum((np.asarray(y) - np.mean(y)) ** 2))
    return Line(float(slope), float(intercept), 1 - float(np.sum(residue**2)) / spread if spread else 1.0)


def stages(folder: Path, corpus: str, count: int) -> list[Figure]:
    """Fit every stage over four sizes and extrapolate."""
    originals = real_texts(corpus, folder, 3300, count)
    texts = plant(originals, 0.1, seed=4).texts
    tokenizer = train_tokenizer(folder, texts[:2000])
    warm_up = stages_at(texts[:WARM_UP], tokenizer, folder / "warm")
    sizes = [len(texts) >> shift for shift in reversed(range(SIZES))]
    measured = [stages_at(texts[:size], tokenizer, folder / f"size{size}", warm_up) for size in sizes]
    characters = sum(map(len, texts)) / len(texts)
    tokens_per_document = measured[-1].tokens / len(texts)
    print(f"sizes {sizes}, {characters:,.0f} characters and {tokens_per_document:,.0f} written tokens a document given")
    print("| stage | CPU-ms a document | start, CPU-s | R² | bytes a document | peak MB at the sizes | "
          f"core-hours for {DOCUMENTS:.0e} documents | core-hours for {TOKENS:.0e} tokens |")  # fmt: skip
    figures = []
    for name in STAGES:
        costs = [m.costs[name] for m in measured]
        x = [float(cost.documents) for cost in costs]
        time_line, byte_line = fit(x, [cost.seconds for cost in costs]), fit(x, [float(cost.bytes) for cost in costs])
        start = sum(cost.start_seconds for cost in costs) / SIZES
        hours = time_line.slope * DOCUMENTS / 3600
        peaks = " ".join(f"{cost.peak_bytes / 1e6:.0f}" for cost in costs)
        print(f"| {name} | {1e3 * time_line.slope:.3f} | {start:.2f} | {time_line.r2:.4f} | "
              f"{byte_line.slope:,.0f} | {peaks} | {hours:,.0f} | "
              f"{hours * TOKENS / (DOCUMENTS * tokens_per_document):,.0f} |")  # fmt: skip
        figures.append(Figure(f"{name}: R² of CPU seconds over documents", time_line.r2, 0.95))
    index = fit([float(m.documents) for m in measured], [float(m.index_bytes) for m in measured])
    print(f"| index | | | {index.r2:.4f} | {index.slope:,.0f} | | | |")
    return figures


def random_segment(shard: int, count: int, cfg: DedupConfig) -> tuple[NDArray[np.uint64], Segment]:
    """The band keys and the segment of `count` random signatures, all kept."""
    rng = np.random.default_rng(shard)
    signature = rng.integers(0, 2**32, (count, cfg.bands * cfg.rows), dtype=np.uint32)
    keys = band_keys(signature, cfg.bands, cfg.rows)  # [bands, count]
    orders = [np.argsort(band, kind="stable") for band in keys]
    exact = rng.integers(0, 2**64, (count, 2), dtype=np.uint64)  # [count, 2]: 128 bits as two halves
    by_hash = np.argsort(exact[:, 0])
    rows = np.arange(count)
    segment = Segment(
        keys=np.concatenate([band[order] for band, order in zip(keys, orders)]),
        places=np.concatenate(orders).astype(np.uint32),
        starts=np.arange(cfg.bands + 1, dtype=np.int64) * count,
        exact=exact[by_hash],
        exact_places=by_hash.astype(np.uint32),
        sketches=signature.astype(np.uint8),  # [count, bands * rows], the low bytes
        documents=np.stack([np.full(count, shard), rows], axis=1).astype(np.uint32),
    )
    return keys, segment


@dataclass(frozen=True)
class Grown:
    """The index after some shards: what all its commits took, the memory of the largest, and a look-up at its end."""

    documents: int
    commit_seconds: float
    commit_bytes: int
    look_up: Step
    bytes: int


def grow(folder: Path, signatures: int) -> list[Grown]:
    """Fill an index shard by shard; four times on the way look 20,000 documents up, half of which it has."""
    cfg = DedupConfig()
    index = DedupIndex(
        folder, index_parameters(cfg), chain_keys(index_parameters(cfg), "", list(map(str, range(SHARDS))))
    )
    count, asked = signatures // SHARDS, min(signatures // SHARDS, MOST_ASKED)
    commits: list[Step] = []
    grown = []
    first = random_segment(0, count, cfg)[0][:, :asked]
    for shard in range(SHARDS):
        segment = random_segment(shard, count, cfg)[1]
        commits.append(measured(partial(index.commit, shard, segment)))
        if shard + 1 in [SHARDS >> shift for shift in range(SIZES)]:
            keys = np.concatenate([first, random_segment(SHARDS, asked, cfg)[0]], axis=1)
            look_up = measured(partial(ask, index.segments(shard + 1), keys, cfg))
            size = sum(path.stat().st_size for path in folder.rglob("*.npy"))
            seconds, peak = sum(step.seconds for step in commits), max(step.bytes for step in commits)
            grown.append(Grown((shard + 1) * count, seconds, peak, look_up, size))
    return grown


def ask(segments: list[Segment], keys: NDArray[np.uint64], cfg: DedupConfig) -> None:
    """Look documents up, of which the index has every one in the first half."""
    hits = find(segments, keys, np.ones(keys.shape[1], np.bool_), cfg.bucket_size)
    candidate_sketches(segments, hits.documents)
    assert set(hits.rows.tolist()) == set(range(keys.shape[1] // 2)), "the index lost documents or found foreign ones"


def index(folder: Path, signatures: int) -> list[Figure]:
    """Simulate the index and fit its bytes and its cost."""
    grown = in_child(grow, folder / "index", signatures)
    print("| documents | commit and merge, CPU-µs a document | look-up, CPU-µs a document | bytes a document | "
          "memory of a commit, MB | mapped by the look-ups, MB |")  # fmt: skip
    asked = 2 * min(signatures // SHARDS, MOST_ASKED)
    for g in grown:
        print(f"| {g.documents:,} | {1e6 * g.commit_seconds / g.documents:.2f} | "
              f"{1e6 * g.look_up.seconds / asked:.1f} | {g.bytes / g.documents:.1f} | {g.commit_bytes / 1e6:,.0f} | "
              f"{g.look_up.bytes / 1e6:,.0f} |")  # fmt: skip
    per_document = fit([float(g.documents) for g in grown], [float(g.bytes) for g in grown])
    print(f"index of {DOCUMENTS:.0e} documents: {per_document.slope * DOCUMENTS / 1e12:.2f} TB")
    return [
        Figure("index: bytes a document", per_document.slope, 320, "lower"),  # docs/scale.md: 308
        Figure("index: memory of its largest commit", grown[-1].commit_bytes / 1e6, COMMIT_MEGABYTES, "lower", " MB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: about two minutes")
    parser.add_argument("--corpus", default="python-docs", help="any source that `bessemer run --corpus` takes")
    parser.add_argument("--only", nargs="*", choices=["stages", "index"], default=["stages", "index"])
    parser.add_argument("--signatures", type=int, default=0, help="size of the simulated index; 0: 10^7, --quick 10^6")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bessemer-scale-") as name:
        folder = Path(name)
        if "index" in arguments.only:
            figures += index(folder, arguments.signatures or (1_000_000 if arguments.quick else 10_000_000))
        if "stages" in arguments.only:
            figures += stages(folder, arguments.corpus, 4_000 if arguments.quick else 12_000)
    conclude(figures)


if __name__ == "__main__":
    main()
