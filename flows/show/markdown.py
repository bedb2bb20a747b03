"""A run's summary as Markdown, for Prefect's page, MLflow's artifacts and notifications."""

import json
from collections.abc import Sequence

import yaml

from flows.show.summary import Summary, draw_curve, loss_points, model_rows, overlap_lines, stage_figures, summarise
from tasks.evaluation.plots import family_sizes, quality_against_size, ranked_drops
from tasks.mechanism.progress import format_seconds
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.stage import Outcome
from tasks.mechanism.store import Manifest, Store

_MODEL_COLUMNS = {
    "model": "model",
    "size_bytes": "size, MB",
    "val_bits_per_byte": "bits per byte",
    "val_perplexity": "perplexity",
    "reward_accuracy": "reward accuracy",
}


def report_files(store: Store, record: RunRecord) -> dict[str, bytes]:
    """What stays with a run in MLflow, by file name; `tables/` holds what its pages show as tables."""
    summary = summarise(store, record)
    files = {
        "summary.md": summary_markdown(summary),
        "recipe.yaml": yaml.safe_dump(record.recipe, sort_keys=False),
        "command.txt": f"{record.command}\n",
        "run.json": record.model_dump_json(indent=1),
    }
    if summary.manifests:
        newest = max(summary.manifests.values(), key=lambda manifest: manifest.created)
        files["environment.json"] = json.dumps(newest.environment, indent=1)
    if summary.samples:
        rows = [[sample.prompt, sample.answer] for sample in summary.samples]
        files["tables/samples.json"] = json.dumps({"columns": ["prompt", "answer"], "data": rows})
    return {name: text.encode() for name, text in files.items()} | _plots(summary)


def _plots(summary: Summary) -> dict[str, bytes]:
    """Drawn only where something was built: a run that was served whole would wait for nothing new."""
    if all(stage.status == "cached" for stage in summary.record.stages):
        return {}
    needed = {"size_bytes", "val_bits_per_byte"}
    evaluations = {form: m for form, m in summary.evaluations.items() if needed <= m.metrics.keys()}
    return {"plots/quality_against_size.png": quality_against_size(evaluations)} if evaluations else {}


def stage_markdown(store: Store, outcome: Outcome) -> str:
    """What a person looks at first in a built stage, for its page; "" where a line says it all."""
    if outcome.manifest.stage == "filter":
        return _filter_markdown(outcome.manifest)
    if outcome.manifest.stage == "dedup":
        return _dedup_markdown(outcome)
    points = loss_points(store, outcome.manifest)
    return loss_markdown(outcome.label, points) if len(points) > 1 else ""


def loss_markdown(label: str, points: Sequence[tuple[float, float]]) -> str:
    """The loss curve so far."""
    step, loss = points[-1]
    return f"**{label}**: loss {loss:.4f} at step {step:.0f}\n\n```\n{draw_curve(points)}\n```\n"


def _filter_markdown(manifest: Manifest) -> str:
    left = total = int(manifest.metrics["documents_in"])
    rows = [["in", "", str(total)]]
    for rule, count in ranked_drops(manifest):
        left -= count
        rows.append([f"{rule}", f"-{count} ({count / total:.1%})", str(left)])
    return "**filter**: documents, by the first rule that caught them\n\n" + _table(("rule", "dropped", "left"), rows)


def _dedup_markdown(outcome: Outcome) -> str:
    metrics = outcome.manifest.metrics
    names = ("documents_in", "duplicates_exact", "duplicates_near", "documents_kept")
    figures = _table(("figure", "documents"), [[name.replace("_", " "), f"{metrics[name]:.0f}"] for name in names])
    sizes = sorted(family_sizes(outcome).items())
    families = _table(("documents in a family of near duplicates", "families"), [[f"{s}", f"{n}"] for s, n in sizes])
    return "**dedup**\n\n" + figures + (f"\n\n{families}" if sizes else "")


def summary_markdown(summary: Summary) -> str:
    """What was built, what it cost, how good it is, and what it says."""
    record = summary.record
    parts = [f"# {record.run_id}: {record.status}", f"`{record.command}`"]
    if record.error:
        parts.append(f"**{record.error}**")
    parts.append(_table(("stage", "in and out", "took", "note"), [_stage_row(summary, s.label) for s in record.stages]))
    if summary.started_from:
        parts.append(f"Pretraining went on from {summary.started_from}.")
    if model_rows(summary):
        rows = [[_cell(row.get(column, ""), column) for column in _MODEL_COLUMNS] for row in model_rows(summary)]
        parts.append("## Held-out text\n\n" + _table(tuple(_MODEL_COLUMNS.values()), rows))
    overlap = overlap_lines(summary)
    if overlap:
        parts.append(
            "**Overlap**: what the figures above must be read with.\n\n" + "\n".join(f"- {o}" for o in overlap)
        )
    if summary.verdict:
        parts.append(f"**Verdict**: {summary.verdict.get('verdict')}. {summary.verdict.get('reason', '')}")
    parts += [f"> **{sample.prompt}**\n>\n> {_quoted(sample.answer)}" for sample in summary.samples[:5]]
    return "\n\n".join(parts) + "\n"


def _stage_row(summary: Summary, label: str) -> list[str]:
    stage = summary.record.stage(label)
    assert stage is not None
    manifest = summary.manifests.get(label)
    note = " ".join(filter(None, ("cached" if stage.status == "cached" else "", stage.note)))
    return [label, stage_figures(manifest) if manifest else "", format_seconds(stage.seconds), note]


def _cell(value: float | str, column: str) -> str:
    if isinstance(value, str):
        return value
    return f"{value / 1e6:.2f}" if column == "size_bytes" else f"{value:.4f}"


def _quoted(text: str) -> str:
    return text.strip().replace("\n", "\n> ")


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
