"""Show a comparison of two runs: the same tables on a terminal and on one HTML page that needs no other file."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.show.compare import ModelChange, RunComparison
from tasks.mechanism.progress import format_count, format_seconds
from tasks.text.inspect.changes import Movement

UNITS = {"bits_per_byte": "bits per byte", "preference_accuracy": "preference accuracy"}


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, a table; `rows` may be empty."""

    title: str
    sentence: str
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()


def sections(comparison: RunComparison) -> list[Section]:
    """All that there is to show, the verdicts first."""
    return [
        _scores(comparison),
        _settings(comparison),
        _code(comparison),
        *_documents(comparison),
        _figures(comparison),
        _costs(comparison),
        _answers(comparison),
    ]


def _scores(comparison: RunComparison) -> Section:
    sentence = "Paired over what both runs scored; 95 % intervals. The verdict is about the second run."
    if not comparison.models:
        sentence = "There is nothing to compare: one of the runs has no evaluation."
    rows = [_score_row(row) for row in comparison.models]
    return Section("Scores", sentence, ("model", "figure", "change", "interval", "shared", "verdict"), rows)


def _score_row(row: ModelChange) -> tuple[str, ...]:
    change = row.change
    # Four places: two seeds of one recipe differ in the third (docs/LOG.md, 2026-11-27).
    interval = f"{change.low:+.4f} to {change.high:+.4f}"
    measured = (f"{change.difference:+.4f}", interval) if change.low or change.high or change.difference else ("0", "")
    return row.model, UNITS[change.metric], *measured, str(change.shared), change.verdict


def _settings(comparison: RunComparison) -> Section:
    rows = [(c.field, str(c.before), str(c.after)) for c in comparison.settings]
    sentence = "" if rows else "Recipes and the content of the sources are the same."
    return Section("Settings", sentence, ("field", "before", "after"), rows)


def _code(comparison: RunComparison) -> Section:
    rows = [(c.label, c.before, c.after) for c in comparison.code]
    sentence = "" if rows else "Every stage that both runs have was built by the same code."
    return Section("Code", sentence, ("stage", "before", "after"), rows)


def _documents(comparison: RunComparison) -> list[Section]:
    changes = comparison.documents
    if changes is None:
        return [Section("Documents", "Not compared: the documents of one run were collected, or it never judged them.")]
    sentence = (
        f"Learned from {changes.kept_before:,} documents before, {changes.kept_after:,} after; "
        f"{changes.kept_in_both:,} are the same."
    )
    whole = Section("Documents", sentence)
    columns = ("documents", "fate before", "fate after", "for example")
    parts = [
        Section(f"Documents that {verb}", "", columns, [_movement_row(m) for m in movements])
        for verb, movements in (("entered", changes.entered), ("left", changes.left))
        if movements
    ]
    return [whole, *parts]


def _movement_row(movement: Movement) -> tuple[str, ...]:
    examples = "\n".join(f"{s.origin}: {' '.join(s.beginning.split())}" for s in movement.samples)
    return f"{movement.documents:,}", movement.before, movement.after, examples


def _figures(comparison: RunComparison) -> Section:
    rows = [(c.label, c.name.replace("_", " "), _number(c.before), _number(c.after)) for c in comparison.figures]
    sentence = "Final figures that differ." if rows else "All final figures are the same."
    return Section("Figures", sentence, ("stage", "figure", "before", "after"), rows)


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return format_count(value) if abs(value) >= 10_000 else f"{value:.6g}"


def _costs(comparison: RunComparison) -> Section:
    before = sum(cost.seconds_before for cost in comparison.costs)
    after = sum(cost.seconds_after for cost in comparison.costs)
    rows = [
        (c.label, _cost(c.status_before, c.seconds_before), _cost(c.status_after, c.seconds_after))
        for c in comparison.costs
    ]
    sentence = f"Stages built: {format_seconds(before)} before, {format_seconds(after)} after."
    return Section("Cost", sentence, ("stage", "before", "after"), rows)


def _cost(status: str, seconds: float) -> str:
    return format_seconds(seconds) if status == "built" else status


def _answers(comparison: RunComparison) -> Section:
    rows = [(a.prompt, a.before, a.after) for a in comparison.answers]
    sentence = "By the aligned models, greedily." if rows else "The runs answered no question in common."
    return Section("Answers", sentence, ("question", "before", "after"), rows)


def render_comparison(comparison: RunComparison) -> RenderableType:
    """The comparison for a terminal."""
    heading = f"[bold]{comparison.before.run_id}[/bold] → [bold]{comparison.after.run_id}[/bold]"
    parts: list[RenderableType] = [heading]
    for section in sections(comparison):
        parts.append(Text.assemble("\n", (section.title, "bold"), f"  {section.sentence}"))
        if section.rows:
            parts.append(_terminal_table(section))
    return Group(*parts)


def _terminal_table(section: Section) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in section.columns:
        table.add_column(column, overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in row))  # text of strangers: no markup
    return table


def render_page(comparison: RunComparison) -> str:
    """The comparison as one HTML page without a script."""
    title = f"{comparison.before.run_id} → {comparison.after.run_id}"
    body = "\n".join(_html_section(section) for section in sections(comparison))
    return _PAGE.replace("TITLE", escape(title)).replace("BODY", body)  # not format: the style sheet is full of braces


def _html_section(section: Section) -> str:
    head = f"<h2>{escape(section.title)}</h2><p>{escape(section.sentence)}</p>"
    if not section.rows:
        return head
    rows = "\n".join(_html_row(row) for row in section.rows)
    columns = "".join(f"<th>{escape(column)}</th>" for column in section.columns)
    return f"{head}<table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>"


def _html_row(row: Sequence[str]) -> str:
    verdicts = ("better", "worse", "inconclusive")
    cells = (f'<td class="{c}">{escape(c)}</td>' if c in verdicts else f"<td>{escape(c)}</td>" for c in row)
    return f"<tr>{''.join(cells)}</tr>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title>
<style>
:root { color-scheme: light dark; --line: #8884; --better: #2a7f62; --worse: #c4473a; --muted: #888; }
body { margin: 0 auto; padding: 16px 24px; max-width: 1200px; font: 14px/1.45 system-ui, sans-serif; }
h1 { font-size: 20px; } h2 { font-size: 16px; margin: 24px 0 4px; } p { margin: 0 0 6px; color: var(--muted); }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; color: var(--muted); font-weight: 500; }
th, td { border-top: 1px solid var(--line); padding: 4px 12px 4px 0; vertical-align: top; white-space: pre-wrap;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.better { color: var(--better); font-weight: 600; } .worse { color: var(--worse); font-weight: 600; }
</style></head><body><h1>TITLE</h1>
BODY
</body></html>
"""
