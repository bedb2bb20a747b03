"""Is a model of one run better than the same model of another, for sure? Paired over what both evaluations scored."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tasks.evaluation.gate import MIN_DOCUMENTS, GateConfig, compare

if TYPE_CHECKING:
    import pyarrow as pa

SureVerdict = Literal["better", "worse", "inconclusive"]


@dataclass(frozen=True)
class ScoreChange:
    """The second run's figure minus the first's, over the `shared` documents or pairs that both were scored on.

    `verdict` is about the second run. Too few shared ones give no interval: all three figures are 0 then.
    """

    metric: str
    difference: float
    low: float
    high: float
    shared: int
    verdict: SureVerdict


def bits_per_byte_change(cfg: GateConfig, before: Path, after: Path) -> ScoreChange:
    """The change of bits per byte between two evaluations, as the gate would judge it."""
    # "After" is the candidate: a negative difference is a gain.
    found = compare(cfg, after, before)
    assert found.verdict != "first"
    return ScoreChange("bits_per_byte", found.difference, found.low, found.high, found.documents, found.verdict)


def preference_accuracy_change(cfg: GateConfig, before: Path, after: Path) -> ScoreChange | None:
    """The change of how often the better answer is the likelier per token; None where either scored no pairs."""
    import numpy as np
    import pyarrow.parquet as pq

    from model.scoring.interval import judge, paired_difference

    paths = [path / "preferences.parquet" for path in (before, after)]
    if not all(path.exists() for path in paths):
        return None
    old, new = (_prefers_chosen(pq.read_table(path)) for path in paths)
    # Sorted: a join has no order, and the bootstrap draws by place.
    joined = old.join(new, "preference_id", join_type="inner", right_suffix="_after").sort_by("preference_id")
    pairs = len(joined)
    if pairs < MIN_DOCUMENTS:
        return ScoreChange("preference_accuracy", 0.0, 0.0, 0.0, pairs, "inconclusive")
    # Errors, since of those less is better, as `judge` takes it.
    wrong_before, wrong_after = (1.0 - joined[name].to_numpy() for name in ("right", "right_after"))
    errors = paired_difference(wrong_after, wrong_before, np.ones(pairs), cfg.confidence, cfg.resamples, cfg.seed)
    # Not -x, which makes -0.0 of 0.0; the ends swap
    gained, low, high = 0.0 - errors.estimate, 0.0 - errors.high, 0.0 - errors.low
    return ScoreChange("preference_accuracy", gained, low, high, pairs, judge(errors))


def _prefers_chosen(pairs: "pa.Table") -> "pa.Table":
    """(preference_id, right: 1.0 where the better answer is the likelier per token)."""
    import numpy as np
    import pyarrow as pa

    chosen, rejected = (
        pairs[f"{side}_log_prob"].to_numpy() / np.maximum(pairs[f"{side}_tokens"].to_numpy(), 1)
        for side in ("chosen", "rejected")
    )
    return pa.table({"preference_id": pairs["preference_id"], "right": (chosen > rejected).astype("float64")})
