"""Pictures where a person would rather look than read, drawn from manifests, curves and artifacts after the fact."""

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from tasks.mechanism.stage import Outcome, curve_path
from tasks.mechanism.store import Manifest, Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (7.0, 4.0)
DOTS_PER_INCH = 110
INK = "#1f4e79"
ACCENT = "#c0504d"
MAX_BARS = 20


def stage_plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    """PNG pictures of one built stage by file name; {} where figures say enough."""
    draw = _STAGE_PLOTS.get(outcome.manifest.stage, _training_plots)  # of a stage without a curve it draws nothing
    return draw(store, outcome)


def quality_against_size(evaluations: Mapping[str, Manifest]) -> bytes:
    """Bits per byte on held-out text against bytes on disk, one point per model."""

    def draw(axes: "Axes") -> None:
        for name, manifest in evaluations.items():
            x, y = manifest.metrics["size_bytes"] / 1e6, manifest.metrics["val_bits_per_byte"]
            axes.plot(x, y, "o", color=INK)
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 4))
        axes.set_xlabel("size on disk, MB")
        axes.set_ylabel("bits per byte, held-out text")

    return _picture(draw)


def _picture(draw: Callable[["Axes"], None]) -> bytes:
    """Draw on fresh axes, without pyplot's global state, and return the PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # no version of matplotlib in the bytes
    return buffer.getvalue()


def read_curve(path: Path) -> list[dict[str, float]]:
    """The points of a curve file, [] where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _training_plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    """The loss by tokens trained on; by steps where a step's tokens are not the same throughout."""
    manifest = outcome.manifest
    points = read_curve(curve_path(store, manifest.stage, manifest.key))
    series = [name for name in ("loss", "val_loss") if any(name in point for point in points)]
    if not series:
        return {}
    batches = manifest.config.get("batches", {})
    # With a batch ramp step times tokens is not what was trained on.
    step_tokens = 0 if batches.get("initial_batch_tokens") else batches.get("batch_tokens", 0)

    def draw(axes: "Axes") -> None:
        for name, colour in zip(series, (INK, ACCENT)):
            chosen = [(point["step"] * (step_tokens or 1), point[name]) for point in points if name in point]
            axes.plot(*zip(*chosen), color=colour, label=name, linewidth=1.2, marker="." if len(chosen) < 30 else "")
        axes.set_xlabel("tokens trained on" if step_tokens else "step")
        axes.set_ylabel("loss, nats per pair" if "train_pairs" in manifest.metrics else "loss, nats per token")
        axes.legend(frameon=False)

    return {"loss.png": _picture(draw)}


def ranked_drops(manifest: Manifest) -> list[tuple[str, int]]:
    """(rule, documents that it was the first to drop) of a filter, most first."""
    drops = {k.removeprefix("dropped/"): int(v) for k, v in manifest.metrics.items() if k.startswith("dropped/")}
    return sorted(drops.items(), key=lambda item: (-item[1], item[0]))


def _filter_plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    """A waterfall: from the documents that came in, rule by rule, to those that were kept."""
    drops = ranked_drops(outcome.manifest)
    if not drops:
        return {}
    steps = [("in", int(outcome.manifest.metrics["documents_in"])), *((rule, -count) for rule, count in drops)]

    def draw(axes: "Axes") -> None:
        left = 0
        for name, change in steps:
            bar = axes.barh(name, change, left=left, color=INK if change > 0 else ACCENT)
            axes.bar_label(bar, [f"{change:+d}" if change < 0 else f"{change}"], padding=3)
            left += change
        axes.bar_label(axes.barh("kept", left, color=INK), padding=3)
        axes.invert_yaxis()
        axes.set_xlabel("documents left after each rule, counted at the first rule that caught them")

    return {"waterfall.png": _picture(draw)}


def family_sizes(outcome: Outcome) -> Counter[int]:
    """{documents in a family of near duplicates, the kept one included: number of such families}."""
    pairs = outcome.artifact.path / "pairs.parquet"
    kept = Counter(pq.read_table(pairs, columns=["kept"])["kept"].to_pylist()) if pairs.exists() else Counter()
    return Counter(count + 1 for count in kept.values())


def _dedup_plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    """How large the families of duplicates are."""
    sizes = family_sizes(outcome)
    if not sizes:
        return {}

    def draw(axes: "Axes") -> None:
        axes.scatter(list(sizes), list(sizes.values()), color=INK)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("documents in a family of duplicates (one is kept)")
        axes.set_ylabel("families")

    return {"families.png": _picture(draw)}


def _tokenizer_plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    """Bytes per token beside the other tokenizers that were measured on the same text, and plain bytes."""
    metrics = outcome.manifest.metrics
    # One byte a token: what byte-level BPE starts from.
    bars = {"bytes": 1.0, f"this one, {metrics['vocab_size']:.0f} tokens": metrics["bytes_per_token"]}
    bars |= {k.removeprefix("bytes_per_token/"): v for k, v in metrics.items() if k.startswith("bytes_per_token/")}
    return {"efficiency.png": _bars(bars, "bytes of the corpus per token")}


def _evaluate_plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    """Where in the held-out text the model is good: bits per byte by source, the best first."""
    metrics = outcome.manifest.metrics.items()
    by_source = {k.removeprefix("bits_per_byte/"): v for k, v in metrics if k.startswith("bits_per_byte/")}
    ranked = sorted(by_source.items(), key=lambda item: item[1])[:MAX_BARS]
    return {"sources.png": _bars(dict(ranked), "bits per byte, held-out text")} if len(ranked) > 1 else {}


def _bars(values: Mapping[str, float], label: str) -> bytes:
    """Named bars, the first on top."""

    def draw(axes: "Axes") -> None:
        axes.bar_label(axes.barh(list(values), list(values.values()), color=INK), fmt="%.2f", padding=3)
        axes.invert_yaxis()
        axes.set_xlabel(label)

    return _picture(draw)


_STAGE_PLOTS: dict[str, Callable[[Store, Outcome], dict[str, bytes]]] = {
    "filter": _filter_plots,
    "dedup": _dedup_plots,
    "tokenizer": _tokenizer_plots,
    "evaluate": _evaluate_plots,
}
