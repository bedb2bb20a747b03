"""Pictures where a person would rather look than read, drawn from manifests, curves and artifacts after the fact."""

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from tasks.stage import Outcome, curve_path
from tasks.store import Manifest, Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (7.0, 4.0)
DOTS_PER_INCH = 110
INK = "#1f4e79"
ACCENT = "#c0504d"


def stage_plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    """PNG pictures of one built stage by file name; {} where figures say enough."""
    draw = _STAGE_PLOTS.get(outcome.manifest.stage)
    return draw(store, outcome) if draw else {}


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
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def read_curve(path: Path) -> list[dict[str, float]]:
    """The points of a curve file, [] where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _training_plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    manifest = outcome.manifest
    points = read_curve(curve_path(store, manifest.stage, manifest.key))
    series = [name for name in ("loss", "val_loss") if any(name in point for point in points)]
    if not series:
        return {}

    def draw(axes: "Axes") -> None:
        for name, colour in zip(series, (INK, ACCENT)):
            chosen = [(point["step"], point[name]) for point in points if name in point]
            axes.plot(*zip(*chosen), color=colour, label=name, linewidth=1.2, marker="." if len(chosen) < 30 else "")
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token")
        axes.legend(frameon=False)

    return {"loss.png": _picture(draw)}


def _filter_plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    """How many documents each rule dropped, most first."""
    drops = {k.removeprefix("dropped/"): v for k, v in outcome.manifest.metrics.items() if k.startswith("dropped/")}
    if not drops:
        return {}
    ranked = sorted(drops.items(), key=lambda item: item[1])

    def draw(axes: "Axes") -> None:
        bars = axes.barh([name for name, _ in ranked], [count for _, count in ranked], color=INK)
        axes.bar_label(bars, padding=3)
        axes.set_xlabel("documents dropped, by the first rule that caught them")

    return {"drops.png": _picture(draw)}


def _dedup_plots(store: Store, outcome: Outcome) -> dict[str, bytes]:
    """How large the families of duplicates are."""
    pairs = outcome.artifact.path / "pairs.parquet"
    kept = Counter(pq.read_table(pairs, columns=["kept"])["kept"].to_pylist()) if pairs.exists() else Counter()
    if not kept:
        return {}
    sizes = Counter(count + 1 for count in kept.values())

    def draw(axes: "Axes") -> None:
        axes.scatter(list(sizes), list(sizes.values()), color=INK)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("documents in a family of duplicates (one is kept)")
        axes.set_ylabel("families")

    return {"families.png": _picture(draw)}


_STAGE_PLOTS: dict[str, Callable[[Store, Outcome], dict[str, bytes]]] = {
    "filter": _filter_plots,
    "dedup": _dedup_plots,
    "pretrain": _training_plots,
    "sft": _training_plots,
    "dpo": _training_plots,
}
