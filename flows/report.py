"""A run's summary as Markdown, for Prefect's page, MLflow's artifacts and notifications."""

from flows.summary import Summary, model_rows, stage_figures
from tasks.progress import format_seconds

_MODEL_COLUMNS = {
    "model": "model",
    "size_bytes": "size, MB",
    "val_bits_per_byte": "bits per byte",
    "val_perplexity": "perplexity",
    "reward_accuracy": "reward accuracy",
}


def summary_markdown(summary: Summary) -> str:
    """What was built, what it cost, how good it is, and what it says."""
    record = summary.record
    parts = [f"# {record.run_id}: {record.status}", f"`{record.command}`"]
    if record.error:
        parts.append(f"**{record.error}**")
    parts.append(_table(("stage", "in and out", "took", "note"), [_stage_row(summary, s.label) for s in record.stages]))
    if model_rows(summary):
        rows = [[_cell(row.get(column, ""), column) for column in _MODEL_COLUMNS] for row in model_rows(summary)]
        parts.append("## Held-out text\n\n" + _table(tuple(_MODEL_COLUMNS.values()), rows))
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
