"""What a person wants to read when a run has ended, derived from manifests and artifacts alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flows import graph
from tasks.evaluation.evaluate import CLEAN_SHARE, evaluation_label
from tasks.evaluation.plots import read_curve
from tasks.mechanism.progress import format_count, format_seconds
from tasks.mechanism.runs import RunRecord, list_runs
from tasks.mechanism.stage import Stage, curve_path
from tasks.mechanism.store import Manifest, Store, StoreDamage

CURVE_WIDTH = 64  # with its scale 72 columns, which a log's 80 hold
CURVE_HEIGHT = 9
MINIMUM_WIDTH = 120  # tables are wider than the 80 columns that a log or pipe is taken to have
FIGURES = {stage.name: stage.figures for stage in vars(graph).values() if isinstance(stage, Stage)}
"""Of each stage that the graph calls: the metrics that it names as its most telling."""


@dataclass(frozen=True)
class Sample:
    """A question and the model's answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Summary:
    """A run's figures, ready to be shown in any form."""

    record: RunRecord
    manifests: dict[str, Manifest]
    curve: list[tuple[float, float]]
    samples: list[Sample]
    verdict: dict[str, Any]
    started_from: str

    @property
    def evaluations(self) -> dict[str, Manifest]:
        """By form of the model, in the run's order, how its evaluation came about; without those collected since."""
        labels = {form: evaluation_label(form) for form in self.record.forms}
        return {form: self.manifests[label] for form, label in labels.items() if label in self.manifests}

    @property
    def candidate_evaluation(self) -> Manifest | None:
        """That of the form which the gate judges."""
        return self.evaluations.get(self.record.roles.get("candidate", ""))


def summarise(store: Store, record: RunRecord) -> Summary:
    """Gather a run's figures from the store; what has been collected since is left out."""
    manifests = {}
    for stage in record.stages:
        manifest = store.find(stage.stage, stage.key)
        if manifest is not None:
            manifests[stage.label] = manifest
    return Summary(
        record,
        manifests,
        _loss_curve(store, manifests),
        _samples(store, record, manifests),
        _verdict(store, manifests),
        _started_from(store, manifests.get("pretrain")),
    )


def _started_from(store: Store, pretrain: Manifest | None) -> str:
    """The model that pretraining went on from, and the first run that had it; "" for random weights."""
    digest = pretrain.inputs.get("start", "") if pretrain else ""
    if not digest:
        return ""
    found = [run.run_id for run in list_runs(store) for stage in run.stages if stage.digest == digest]
    return f"base model {digest[:12]} of {found[0] if found else 'a run that was collected since'}"


def _loss_curve(store: Store, manifests: dict[str, Manifest]) -> list[tuple[float, float]]:
    """(step, loss) of pretraining."""
    manifest = manifests.get("pretrain")
    return loss_points(store, manifest) if manifest else []


def loss_points(store: Store, manifest: Manifest) -> list[tuple[float, float]]:
    """(step, loss) of a training; [] where its curve is gone, or the stage trains nothing."""
    points = read_curve(curve_path(store, manifest.stage, manifest.key))
    return [(point["step"], point["loss"]) for point in points if "loss" in point]


def _open_json(store: Store, manifest: Manifest | None, name: str) -> list[dict[str, Any]]:
    """The JSON lines of one file of an artifact, [] where it is gone."""
    if manifest is None:
        return []
    try:
        path = store.open(manifest.digest).path / name
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (StoreDamage, FileNotFoundError):
        return []


def _samples(store: Store, record: RunRecord, manifests: dict[str, Manifest]) -> list[Sample]:
    """What the candidate answers."""
    label = evaluation_label(record.roles.get("candidate", ""))
    rows = _open_json(store, manifests.get(label), "samples.jsonl")
    return [Sample(row["prompt"], row["answer"]) for row in rows]


def _verdict(store: Store, manifests: dict[str, Manifest]) -> dict[str, Any]:
    manifest = manifests.get("gate")
    if manifest is None:
        return {}
    try:
        verdict: dict[str, Any] = json.loads((store.open(manifest.digest).path / "verdict.json").read_bytes())
    except (StoreDamage, FileNotFoundError):
        return {}
    return verdict


def stage_figures(manifest: Manifest) -> str:
    """A stage's telling figures in one cell: `documents_in 9.1k, documents_kept 8.7k`."""
    wanted = FIGURES.get(manifest.stage, ())
    return ", ".join(_named_figure(name, manifest.metrics[name]) for name in wanted if name in manifest.metrics)


def _named_figure(name: str, value: float) -> str:
    if name.endswith("bytes"):
        return f"{name.removesuffix('_bytes').replace('_', ' ')} {format_count(value)}B"
    return f"{name.replace('_', ' ')} {format_count(value)}"


def _stage_table(summary: Summary) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("stage", "in and out", "took", ""):
        table.add_column(column, justify="right" if column == "took" else "left", no_wrap=column != "")
    for stage in summary.record.stages:
        manifest = summary.manifests.get(stage.label)
        cached = "cached" if stage.status == "cached" else ""
        figures = stage_figures(manifest) if manifest else "collected since"
        table.add_row(stage.label, figures, format_seconds(stage.seconds), " ".join(filter(None, (cached, stage.note))))
    return table


def model_rows(summary: Summary) -> list[dict[str, float | str]]:
    """One row per model: size, perplexity, bits per byte, reward accuracy."""
    return [{"model": form, **manifest.metrics} for form, manifest in summary.evaluations.items()]


def _model_table(summary: Summary) -> Table:
    columns = ("size_bytes", "val_bits_per_byte", "val_perplexity", "reward_accuracy")
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("model", "size", "bits per byte", "perplexity", "reward accuracy"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in model_rows(summary):
        cells = [_figure(column, row.get(column)) for column in columns]
        table.add_row(str(row["model"]), *cells)
    manifest = summary.candidate_evaluation
    if manifest and "xz_bits_per_byte" in manifest.metrics:
        table.add_row("xz -9", "", _figure("val_bits_per_byte", manifest.metrics["xz_bits_per_byte"]), "", "")
    return table


def overlap_lines(summary: Summary) -> list[str]:
    """What the scores above must be read with: how much of what they are measured on the training text gives away."""
    leaks = _metrics(summary, "decontaminate")
    scored = next((m.metrics for m in (summary.candidate_evaluation, *summary.evaluations.values()) if m), {})
    counts = {name.removeprefix("items/"): total for name, total in leaks.items() if name.startswith("items/")}
    lines = [
        f"{name}: {leaks[f'items_overlapping/{name}']:.0f} of {total:.0f} items stood in the text; dropped from it."
        for name, total in counts.items()
        if leaks[f"items_overlapping/{name}"]
    ]
    if "val_overlap" in scored:
        clean = scored.get("val_bits_per_byte_clean")
        most = f"{100 * CLEAN_SHARE:.0f} %"
        without = f"; without the documents where it is {most} or more: {clean:.4f} bits per byte" if clean else ""
        lines.append(f"Held-out text: {scored['val_overlap']:.1%} of it stands in the training text too{without}.")
    return lines


def _metrics(summary: Summary, label: str) -> Mapping[str, float]:
    """The figures of a stage call, none where it is not there."""
    manifest = summary.manifests.get(label)
    return manifest.metrics if manifest else {}


def _figure(column: str, value: float | str | None) -> str:
    if not isinstance(value, float | int):
        return ""
    if column == "size_bytes":
        return f"{value / 1e6:.2f} MB"
    if column == "reward_accuracy":
        return f"{100 * value:.1f} %"
    return f"{value:.4f}" if column == "val_bits_per_byte" else f"{value:.2f}"


def verdict_lines(summary: Summary) -> list[str]:
    """The gate's decision, then a line for each of its reasons."""
    verdict = summary.verdict
    if not verdict:
        return []
    decision = "promoted" if verdict["promote"] else "not promoted"
    return [decision, verdict["comparison"]["words"], *(check["words"] for check in verdict["checks"])]


def draw_curve(points: Sequence[tuple[float, float]], width: int = CURVE_WIDTH, height: int = CURVE_HEIGHT) -> str:
    """A curve as characters: `width` columns of bucket means, `height` rows, the scale at its left."""
    if len(points) < 2:
        return ""
    first, last = points[0][0], points[-1][0]
    buckets: list[list[float]] = [[] for _ in range(width)]
    for step, value in points:
        buckets[min(width - 1, int((step - first) / (last - first) * width))].append(value)
    means = [sum(bucket) / len(bucket) if bucket else None for bucket in buckets]
    known = [mean for mean in means if mean is not None]
    low, high = min(known), max(known)
    rows = [[" "] * width for _ in range(height)]
    for column, mean in enumerate(means):
        if mean is not None:
            rows[round((high - mean) / max(high - low, 1e-9) * (height - 1))][column] = "•"  # a flat curve
    labels = [f"{high - (high - low) * row / (height - 1):6.3f}" for row in range(height)]
    lines = [f"{label} ┤{''.join(row).rstrip()}" for label, row in zip(labels, rows)]
    return "\n".join([*lines, f"{'step':>6} └{first:<.0f}{last:>{width - 1}.0f}"])


def next_commands(summary: Summary) -> list[tuple[str, str]]:
    """What to type next, and what it does."""
    home = "" if summary.record.home == ".bessemer" else f" --home {summary.record.home}"
    prefix = ".venv/bin/bessemer"
    return [
        (f"{prefix} chat{home}", "talk to the model"),
        (f"{prefix} up{home}", "open the dashboards of Prefect and MLflow"),
        (f"{prefix} run{home} --set name=NAME --corpus FOLDER --sft FILE", "train on your own text"),
        (f"{prefix} plan{home} --set dpo.beta=0.2", "see what a change would rebuild"),
    ]


def render(summary: Summary) -> RenderableType:
    """The summary for a terminal."""
    record = summary.record
    parts: list[RenderableType] = [Panel(f"{record.run_id}: {record.status}", expand=False), _stage_table(summary)]
    if record.error:
        parts.append(f"[red]{record.error}[/red]")
    if summary.started_from:
        parts.append(f"\nPretraining went on from {summary.started_from}.")
    curve = draw_curve(summary.curve)
    if curve:
        parts += ["\n[bold]Pretraining loss[/bold] (nats per token)", curve]
    if model_rows(summary):
        parts += ["\n[bold]Held-out text[/bold]", _model_table(summary)]
    overlap = overlap_lines(summary)
    if overlap:
        parts += ["\n[bold]Overlap[/bold]", *(f"  {line}" for line in overlap)]
    for number, line in enumerate(verdict_lines(summary)):
        parts.append(f"  {line}" if number else f"\n[bold]Verdict[/bold]: {line}")
    for sample in summary.samples[:3]:
        parts.append(Text.assemble(("\nQ ", "bold"), sample.prompt, ("\nA ", "bold"), sample.answer))
    parts.append("\n[bold]Next[/bold]")
    longest = max(len(command) for command, _ in next_commands(summary))
    parts += [f"  {command:<{longest}}   # {what}" for command, what in next_commands(summary)]
    return Group(*parts)


def print_summary(summary: Summary) -> None:
    """Show the summary on standard output."""
    wide_console().print(render(summary))


def wide_console() -> Console:
    """Standard output, wide enough for tables."""
    console = Console(highlight=False)
    console.width = max(console.width, MINIMUM_WIDTH)
    return console


def summary_json(summary: Summary) -> dict[str, Any]:
    """The summary with stable keys, for `--json`."""
    record = summary.record
    stages = [
        {**stage.model_dump(), "metrics": summary.manifests[stage.label].metrics}
        for stage in record.stages
        if stage.label in summary.manifests
    ]
    return {
        "run_id": record.run_id,
        "status": record.status,
        "started": record.started,
        "ended": record.ended,
        "error": record.error,
        "sources": record.sources,
        "started_from": summary.started_from,
        "stages": stages,
        "models": model_rows(summary),
        "overlap": overlap_lines(summary),
        "verdict": summary.verdict,
        "samples": [{"prompt": s.prompt, "answer": s.answer} for s in summary.samples],
    }
