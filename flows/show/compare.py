"""What differs between two runs and what became of it: documents, settings, code, scores, cost and answers."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.show.summary import FIGURES, Summary, summarise
from tasks.evaluation.evaluate import evaluation_label
from tasks.evaluation.gate import GateConfig
from tasks.evaluation.paired import ScoreChange, bits_per_byte_change, preference_accuracy_change
from tasks.mechanism.runs import RunRecord, flatten
from tasks.mechanism.store import Artifact, Store, StoreDamage
from tasks.text.documents import is_judgement
from tasks.text.inspect.changes import DocumentChanges, JudgedCorpus, document_changes


@dataclass(frozen=True)
class SettingChange:
    """A field of the recipe, or the content of a source, that differs."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class CodeChange:
    """A stage whose code, or declared version, differs; digests cover all first-party code that the stage imports."""

    label: str
    before: str
    after: str


@dataclass(frozen=True)
class FigureChange:
    """A final figure of a stage that differs; None where that run has none."""

    label: str
    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class ModelChange:
    """How one form of the model scores against the same form of the first run."""

    model: str
    change: ScoreChange


@dataclass(frozen=True)
class StageCost:
    """What a stage call cost each run; a cached one cost it nothing, whatever building it once took."""

    label: str
    status_before: str
    seconds_before: float
    status_after: str
    seconds_after: float


@dataclass(frozen=True)
class Answers:
    """One question, answered by the aligned model of each run."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class RunComparison:
    """Everything that a person asks about two runs; `documents` is None where a corpus is gone or was never judged."""

    before: RunRecord
    after: RunRecord
    documents: DocumentChanges | None
    settings: list[SettingChange]
    code: list[CodeChange]
    figures: list[FigureChange]
    models: list[ModelChange]
    costs: list[StageCost]
    answers: list[Answers]


def compare_runs(store: Store, before: RunRecord, after: RunRecord, samples: int = 3) -> RunComparison:
    """Compare two runs of any two recipes; what has been collected since is left out."""
    old, new = summarise(store, before), summarise(store, after)
    return RunComparison(
        before,
        after,
        _documents(store, old, new, samples),
        setting_changes(before, after),
        code_changes(old, new),
        figure_changes(old, new),
        _models(store, before, after),
        _costs(before, after),
        _answers(old, new),
    )


def _artifact(store: Store, record: RunRecord, label: str) -> Artifact | None:
    stage = record.stage(label)
    try:
        return store.open(stage.digest) if stage else None
    except StoreDamage:
        return None


def _judged_corpus(store: Store, summary: Summary) -> JudgedCorpus | None:
    """The documents that a run packed, and whatever judged them, in the order in which it did."""
    packed = summary.manifests.get("pack")
    if packed is None:
        return None
    used = packed.inputs.values()
    try:
        documents = store.open(packed.inputs["documents"])
        given = {stage.label: store.open(stage.digest) for stage in summary.record.stages if stage.digest in used}
    except StoreDamage:
        return None
    return JudgedCorpus(documents, {label: artifact for label, artifact in given.items() if is_judgement(artifact)})


def _documents(store: Store, before: Summary, after: Summary, samples: int) -> DocumentChanges | None:
    old, new = _judged_corpus(store, before), _judged_corpus(store, after)
    return document_changes(old, new, samples) if old and new else None


def setting_changes(before: RunRecord, after: RunRecord) -> list[SettingChange]:
    """The fields that differ, in the order of the recipe, then the sources whose content differs (by digest)."""
    old, new = (
        flatten(r.recipe) | {f"content of {name}": digest[:12] for name, digest in r.sources.items()}
        for r in (before, after)
    )
    names = dict.fromkeys([*old, *new])
    return [SettingChange(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)]


def code_changes(before: Summary, after: Summary) -> list[CodeChange]:
    """The stages of both runs that were built by different code."""
    found = []
    for label, old in before.manifests.items():
        new = after.manifests.get(label)
        if new and (old.code_digest, old.version) != (new.code_digest, new.version):
            words = [f"version {m.version}, code {m.code_digest[:12]}" for m in (old, new)]
            found.append(CodeChange(label, *words))
    return found


def figure_changes(before: Summary, after: Summary) -> list[FigureChange]:
    """The telling figures of each stage that differ."""
    found = []
    for label in dict.fromkeys([*before.manifests, *after.manifests]):
        old, new = before.manifests.get(label), after.manifests.get(label)
        stage = (old or new).stage  # type: ignore[union-attr]
        for name in FIGURES.get(stage, ()):  # an older stage may have left the graph
            values = [m.metrics.get(name) if m else None for m in (old, new)]
            if values[0] != values[1]:
                found.append(FigureChange(label, name, *values))
    return found


def _models(store: Store, before: RunRecord, after: RunRecord) -> list[ModelChange]:
    found = []
    for model in dict.fromkeys([*before.forms, *after.forms]):
        old, new = (_artifact(store, record, evaluation_label(model)) for record in (before, after))
        if old and new:
            found += [ModelChange(model, change) for change in _score_changes(old.path, new.path)]
    return found


def _score_changes(before: Path, after: Path) -> list[ScoreChange]:
    cfg = GateConfig()
    preferences = preference_accuracy_change(cfg, before, after)
    return [bits_per_byte_change(cfg, before, after), *([preferences] if preferences else [])]


def _costs(before: RunRecord, after: RunRecord) -> list[StageCost]:
    rows = []
    for label in dict.fromkeys(stage.label for record in (before, after) for stage in record.stages):
        sides: list[tuple[str, float]] = []
        for record in (before, after):
            stage = record.stage(label)
            status = stage.status if stage else "absent"
            sides.append((status, stage.seconds if stage and status == "built" else 0.0))
        rows.append(StageCost(label, *sides[0], *sides[1]))
    return rows


def _answers(before: Summary, after: Summary) -> list[Answers]:
    new = {sample.prompt: sample.answer for sample in after.samples}
    return [Answers(s.prompt, s.answer, new[s.prompt]) for s in before.samples if s.prompt in new]


def comparison_json(comparison: RunComparison) -> dict[str, Any]:
    """The comparison with stable keys, for `--json`."""
    return {
        "before": comparison.before.run_id,
        "after": comparison.after.run_id,
        "documents": asdict(comparison.documents) if comparison.documents else None,
        "settings": [asdict(change) for change in comparison.settings],
        "code": [asdict(change) for change in comparison.code],
        "figures": [asdict(change) for change in comparison.figures],
        "models": [{"model": row.model, **asdict(row.change)} for row in comparison.models],
        "costs": [asdict(cost) for cost in comparison.costs],
        "answers": [asdict(answers) for answers in comparison.answers],
    }
