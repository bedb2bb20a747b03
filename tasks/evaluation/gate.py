"""Decide whether the new model replaces the champion: better, worse or inconclusive, with an interval and in words.

A bare number decides nothing. The candidate (the aligned model) meets the incumbent on the documents that both were
scored on, by a paired bootstrap; its quantized forms must stay within limits, and it must prefer the better answers.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Five documents have 126 different resamples.
MIN_DOCUMENTS = 5
"""Fewer shared documents than this say nothing: their resamples are too few."""


class GateConfig(StageConfig):
    """What a promotion takes."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence level of the intervals.")
    # With 10,000 the share of resamples beyond an end of 2.5 % errs by 0.16 %.
    resamples: int = Field(10_000, ge=100, le=1_000_000, description="Number of resamples of the paired bootstrap.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
    inconclusive: Literal["decline", "promote"] = Field(
        "decline", description="What to do where neither model is better for sure."
    )
    # 0.5 is a coin: the lower end of Wilson's interval must reach it.
    min_reward_accuracy: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Minimum reward accuracy: share of held-out pairs whose chosen answer gained more than the other.",
    )


class Limit(BaseModel):
    """What a form of the model is held against."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: str = Field(description="Name of the form, under which the gate gets its evaluation.")
    parent: str = Field(description="Name of the form that it was made from.")
    max_increase: float = Field(ge=0, description="Maximum relative increase of its perplexity over its parent's.")


class GateTerms(GateConfig):
    """What the gate is called with: a recipe's section, and what the graph knows of the forms."""

    candidate: str = Field(description="Name of the form that meets the incumbent.")
    held: tuple[Limit, ...] = Field((), description="The forms that must stay within a limit of their parent.")


@dataclass(frozen=True)
class Check:
    """One condition of a promotion: what was found, between which ends for sure, and the limit."""

    name: str
    passed: bool
    value: float
    low: float
    high: float
    limit: float
    words: str


@dataclass(frozen=True)
class Comparison:
    """Candidate minus incumbent in bits per byte, on the documents that both were scored on."""

    verdict: Literal["better", "worse", "inconclusive", "first"]
    difference: float
    low: float
    high: float
    documents: int
    bytes: int
    words: str


@stage("gate", version=2)
def gate(run: StageRun, cfg: GateTerms, incumbent: Artifact | None = None, **evaluations: Artifact) -> None:
    """Write `verdict.json`. The inputs are evaluations by form; without an `incumbent` the candidate is the first."""
    candidate = evaluations[cfg.candidate].path
    comparison = compare(cfg, candidate, incumbent.path if incumbent else None)
    checks = [
        *(
            check_increase(cfg, limit, evaluations[limit.form].path, evaluations[limit.parent].path)
            for limit in cfg.held
        ),
        *check_rewards(cfg, cfg.candidate, candidate),
    ]
    failed = [check for check in checks if not check.passed]
    wins = comparison.verdict in ("better", "first") or (
        comparison.verdict == "inconclusive" and cfg.inconclusive == "promote"
    )
    promote = wins and not failed
    reasons = [comparison.words, *(check.words for check in (failed or checks))]
    verdict = {
        "verdict": comparison.verdict,
        "promote": promote,
        "reason": ("Promoted: " if promote else "Declined: ") + " ".join(reasons),
        "comparison": asdict(comparison),
        "checks": [asdict(check) for check in checks],
        "bits_per_byte": {
            name: json.loads((evaluation.path / "scores.json").read_bytes())["val_bits_per_byte"]
            for name, evaluation in evaluations.items()
        },
    }
    (run.out / "verdict.json").write_text(json.dumps(verdict, indent=1, sort_keys=True) + "\n")
    run.say(str(verdict["reason"]))
    run.metric("promote", float(promote))
    run.metric("checks_failed", len(failed))
    if comparison.verdict != "first":
        run.metric("difference_bits_per_byte", comparison.difference)


@dataclass(frozen=True)
class Shared:
    """What two evaluations say of the documents that both scored; all arrays are (documents,)."""

    candidate_nats: "Floats"
    other_nats: "Floats"
    tokens: "Floats"
    bytes: "Floats"


def shared_documents(candidate: Path, other: Path) -> Shared:
    """The documents that both evaluations scored to the same length, in the order of their ids."""
    import pyarrow.parquet as pq

    columns = ["doc_id", "bytes", "nll_nats", "tokens"]
    ours, theirs = (pq.read_table(path / "documents.parquet", columns=columns) for path in (candidate, other))
    # By bytes too: another tokenizer cuts a long document elsewhere, and nats of other text do not compare. Sorted,
    # since a join has no order and the bootstrap draws by place.
    joined = ours.join(theirs, keys=["doc_id", "bytes"], join_type="inner", right_suffix="_other").sort_by("doc_id")
    names = ("nll_nats", "nll_nats_other", "tokens", "bytes")
    return Shared(*(joined[name].to_numpy().astype("float64") for name in names))


def compare(cfg: GateConfig, candidate: Path, incumbent: Path | None) -> Comparison:
    """The candidate against the champion, weighted by bytes: more text, more say."""
    from model.scoring.interval import judge, paired_difference

    if incumbent is None:
        return Comparison("first", 0.0, 0.0, 0.0, 0, 0, "There is no champion yet.")
    shared = shared_documents(candidate, incumbent)
    documents, size = len(shared.bytes), int(shared.bytes.sum())
    if documents < MIN_DOCUMENTS:
        words = (
            f"The candidate and the champion share {documents} scored documents, too few to compare (at least "
            f"{MIN_DOCUMENTS}). A recipe for other text needs a `name` of its own, under which it has its own champion."
        )
        return Comparison("inconclusive", 0.0, 0.0, 0.0, documents, size, words)
    bits = math.log(2)
    found = paired_difference(
        # Paired: what makes a document hard for both cancels out, so far fewer documents tell two models apart.
        shared.candidate_nats / bits,
        shared.other_nats / bits,
        shared.bytes,
        cfg.confidence,
        cfg.resamples,
        cfg.seed,
    )
    verdict = judge(found)
    manner = {"better": "Better than the champion", "worse": "Worse than the champion"}.get(verdict, "Inconclusive")
    words = (
        f"{manner}: {found.estimate:+.4f} bits per byte ({cfg.confidence:.0%} interval {found.low:+.4f} to "
        f"{found.high:+.4f}, {documents} documents)."
    )
    return Comparison(verdict, found.estimate, found.low, found.high, documents, size, words)


def check_increase(cfg: GateConfig, limit: Limit, changed: Path, original: Path) -> Check:
    """Whether a form's perplexity is, for sure, at most the limit above that of the form it was made from."""
    from model.scoring.interval import paired_difference

    shared = shared_documents(changed, original)
    if not len(shared.tokens):
        raise ValueError(f"The evaluations of {limit.form} and {limit.parent} have no document in common.")
    found = paired_difference(
        shared.candidate_nats, shared.other_nats, shared.tokens, cfg.confidence, cfg.resamples, cfg.seed
    )
    # The difference is the log of the ratio of perplexities; capped, as expm1 overflows beyond 709.
    value, low, high = (math.expm1(min(x, 100.0)) for x in (found.estimate, found.low, found.high))
    passed = high <= limit.max_increase  # the whole interval, so noise alone never passes a form
    words = (
        f"{limit.form} changes the perplexity of {limit.parent} by {value:+.2%} ({low:+.2%} to {high:+.2%}), "
        f"{'within' if passed else 'not surely within'} the limit of {limit.max_increase:+.2%}."
    )
    return Check(limit.form, passed, value, low, high, limit.max_increase, words)


def check_rewards(cfg: GateConfig, name: str, candidate: Path) -> list[Check]:
    """Whether the candidate has made the better answer likelier in enough pairs, for sure; [] where none was scored."""
    import pyarrow.parquet as pq

    from model.scoring.interval import proportion

    path = candidate / "preferences.parquet"
    if not path.exists() or "margin_over_reference" not in pq.read_schema(path).names:
        return []
    margins = pq.read_table(path, columns=["margin_over_reference"])["margin_over_reference"].to_numpy()
    found = proportion(int((margins > 0).sum()), len(margins), cfg.confidence)
    passed = found.low >= cfg.min_reward_accuracy  # the whole interval here too
    words = (
        f"{name} made the better answer likelier in {found.estimate:.1%} of {len(margins)} pairs ({found.low:.1%} to "
        f"{found.high:.1%}), {'at least' if passed else 'not surely'} {cfg.min_reward_accuracy:.0%}."
    )
    return [Check("reward_accuracy", passed, found.estimate, found.low, found.high, cfg.min_reward_accuracy, words)]
