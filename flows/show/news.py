"""What came of a look for new text: for people, and for who asked for it."""

from pydantic import BaseModel, ConfigDict

from flows.show.summary import Summary
from flows.watched import Seen, file_changes
from tasks.mechanism.progress import format_count, format_seconds

NOTHING_NEW = "nothing new"


class News(BaseModel):
    """What came of a look: nothing new, or a run and what it added to what there was before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcome: str = NOTHING_NEW
    run_id: str = ""
    new_documents: int = 0
    new_documents_kept: int = 0
    new_tokens: int = 0
    verdict: str = ""
    seconds: float = 0.0


def notification(summary: Summary, before: Seen, now: Seen, outcome: str, seconds: float) -> str:
    """What was new, what it cost and what it changed, for people."""
    record = summary.record
    changed, gone = file_changes(before.corpus_files, now.corpus_files)
    built = [stage.label for stage in record.stages if stage.status == "built"]
    lines = [
        f"# {record.recipe['name']}: {outcome}",
        f"- new or changed files: {len(changed)}{_examples(changed)}; gone: {len(gone)}{_examples(gone)}",
        f"- documents kept: {format_count(now.documents_kept)}, "
        f"training tokens: {format_count(now.tokens)} "
        f"(last trained on: {format_count(before.trained_tokens)})",
        f"- took {format_seconds(seconds)}; built: {', '.join(built) or 'nothing'}",
        f"- run `{record.run_id}`: {record.status}",
    ]
    if record.stage("pretrain"):
        lines.append(f"- pretraining started from: {summary.started_from or 'random weights'}")
    if summary.verdict:
        lines.append(f"- verdict: {summary.verdict['verdict']}. {summary.verdict['reason']}")
    return "\n".join(lines) + "\n"


def _examples(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return f" ({shown}{', …' if len(names) > 5 else ''})" if names else ""
