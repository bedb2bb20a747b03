"""What would run, why, and how long it would take: the same graph under a runner that looks and never builds.

The time is what the stage took here before, in seconds per unit of work, with an interval.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from flows.champion import incumbent_of
from flows.graph import pipeline
from flows.recipe import Recipe
from flows.run import check_training, resolve_sources, settle
from tasks.mechanism.execution import Execution
from tasks.mechanism.mirror import Mirror
from tasks.mechanism.progress import format_seconds
from tasks.mechanism.stage import C, Input, Outcome, Stage, lookup
from tasks.mechanism.store import Artifact, Manifest, Store

# Half the width, in log space, that one earlier run leaves open: a shared machine varies by about 1.6 times.
SINGLE_RUN_LOG_SPREAD = math.log(1.6)
# Two-sided 80 % quantiles of Student's t by degrees of freedom; more than eight are taken as normal.
_T80 = (0.0, 3.08, 1.89, 1.64, 1.53, 1.48, 1.44, 1.41, 1.40)


_PENDING = "pending:"
Status = Literal["cached", "run", "maybe"]


@dataclass(frozen=True)
class Forecast:
    """Seconds that a stage will take: the expected value and an 80 % interval."""

    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class Work:
    """An amount of work; only amounts of the same `unit` compare."""

    unit: str
    amount: float


def work_of(config: dict[str, Any], input_bytes: float) -> Work:
    """How much a stage call has to do: tokens times weights where its config states both, else the bytes it reads."""
    model, batches = config.get("model", {}), config.get("batches", {})
    width, layers = float(model.get("hidden_size", 0)), float(model.get("num_layers", 0))
    weights = max(1.0, 12 * layers * width**2)  # of the blocks, as recipe.scale_by_depth counts them
    steps = float(batches.get("steps") or 0)
    if batches.get("train_tokens") and not steps:  # as in training, steps win over tokens
        return Work("token-weights", float(batches["train_tokens"]) * weights)
    if steps:
        size = float(batches.get("batch_tokens") or batches.get("batch_pairs", 1))
        return Work("step-weights", steps * size * weights)
    return Work("bytes", max(input_bytes, 1.0) * float(batches.get("epochs") or 1) * weights)


def forecast(work: Work, earlier: Sequence[tuple[Work, Manifest]]) -> Forecast | None:
    """Scale what this stage took before; `earlier` pairs the work of each past build with its manifest."""
    # Logarithms: machines and load differ by factors, so errors are symmetric there.
    rates = [math.log(max(m.seconds, 0.01) / past.amount) for past, m in earlier if past.unit == work.unit]
    if not rates:
        return None
    centre = statistics.fmean(rates) + math.log(work.amount)
    if len(rates) == 1:
        spread = SINGLE_RUN_LOG_SPREAD
    else:
        t = _T80[len(rates) - 1] if len(rates) <= len(_T80) else 1.28
        spread = t * statistics.stdev(rates) * math.sqrt(1 + 1 / len(rates))  # of one more run, beside that of the mean
    return Forecast(math.exp(centre), math.exp(centre - spread), math.exp(centre + spread))


def total(forecasts: Sequence[Forecast]) -> Forecast:
    """The sum of independent forecasts: their errors add in quadrature, on each side."""
    seconds = sum(f.seconds for f in forecasts)
    below = math.sqrt(sum((f.seconds - f.low) ** 2 for f in forecasts))
    above = math.sqrt(sum((f.high - f.seconds) ** 2 for f in forecasts))
    return Forecast(seconds, max(0.0, seconds - below), seconds + above)


@dataclass(frozen=True)
class PlanRow:
    """One stage call. `maybe`: its input will be rebuilt, and if that yields the same bytes it is served."""

    label: str
    status: Status
    reason: str
    forecast: Forecast | None


class Planner:
    """The runner that only looks. What it cannot know yet it passes on as a pending artifact."""

    def __init__(self, execution: Execution) -> None:
        self.store = Store(execution.home)
        self._mirror = Mirror(execution.mirror) if execution.mirror else None
        self.rows: list[PlanRow] = []
        self._manifests = self.store.manifests()
        self._expected_bytes: dict[str, float] = {}

    def __call__(self, stage: Stage[C], config: C, label: str = "", /, **inputs: Input) -> Artifact:
        """Say what would become of this call, and hand on its artifact or a pending one."""
        label = label or stage.name
        if any(value.digest.startswith(_PENDING) for value in inputs.values()):
            reason = self._difference(stage, config, label, inputs)
            status: Status = "run" if reason else "maybe"
            reason = reason or "its input may change"
        else:
            found = lookup(self.store, stage, config, inputs)
            if isinstance(found, Outcome):
                self.rows.append(PlanRow(label, "cached", found.note, None))
                return found.artifact
            shared = self._mirror and self._mirror.look(stage.name, stage.key(config, inputs))
            if shared:
                self.rows.append(PlanRow(label, "cached", "in the shared store", None))
                self._expected_bytes[shared.digest] = float(shared.size_bytes)
                return Artifact(shared.digest, Path("/nonexistent"))
            status, reason = "run", found or self._difference(stage, config, label, inputs)
        self.rows.append(PlanRow(label, status, reason, self._forecast(stage, config, label, inputs)))
        return self._pending(stage, label)

    def _pending(self, stage: Stage[Any], label: str) -> Artifact:
        digest = f"{_PENDING}{label}"
        past = self._past(stage, label)
        self._expected_bytes[digest] = float(past[-1].size_bytes) if past else 0.0
        return Artifact(digest, Path("/nonexistent"))  # opened by nobody: a planner runs no stage

    def _past(self, stage: Stage[Any], label: str) -> list[Manifest]:
        """Earlier builds of this stage, oldest first; those under the same label where there are any."""
        of_stage = [m for m in self._manifests if m.stage == stage.name]
        return [m for m in of_stage if m.label == label] or of_stage

    def _difference(self, stage: Stage[C], config: C, label: str, inputs: Mapping[str, Input]) -> str:
        """The first difference from the closest earlier build, in words; "" where only pending inputs can differ."""
        past = self._past(stage, label)
        if not past:
            return "never built here"
        differences = [self._differences_from(m, stage, config, label, inputs) for m in reversed(past)]
        closest = min(differences, key=len)  # the latest of equally close ones, as they come in that order
        return closest[0] if closest else ""

    def _differences_from(
        self, manifest: Manifest, stage: Stage[C], config: C, label: str, inputs: Mapping[str, Input]
    ) -> list[str]:
        found = []
        if manifest.version != stage.version:
            found.append(f"{stage.name} version: {manifest.version} → {stage.version}")
        found += _config_differences(manifest.config, config.model_dump(mode="json"), label)
        if stage.rebuild == "on-code-change" and manifest.code_digest != stage.code_digest:
            found.append(f"code changed: {manifest.code_digest[:8]} → {stage.code_digest[:8]}")
        for name, value in inputs.items():
            known = not value.digest.startswith(_PENDING)
            if known and manifest.inputs.get(name) != value.digest:
                found.append(f"input {name} changed")
        found += [f"input {name} is gone" for name in manifest.inputs if name not in inputs]
        return found

    def _forecast(self, stage: Stage[C], config: C, label: str, inputs: Mapping[str, Input]) -> Forecast | None:
        input_bytes = sum(self._expected_bytes.get(v.digest) or v.size_bytes for v in inputs.values())
        known = [m for m in self._past(stage, label) if m.input_bytes or not m.inputs]
        earlier = [(work_of(m.config, m.input_bytes), m) for m in known]
        return forecast(work_of(config.model_dump(mode="json"), input_bytes), earlier)


def _config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _config_differences(before, after, f"{prefix}.{name}")
        elif before != after:
            found.append(f"{prefix}.{name}: {before} → {after}")
    return found


def make_plan(recipe: Recipe, execution: Execution) -> list[PlanRow]:
    """One row per stage call, in order; builds nothing.

    Raises:
        ValueError: a source does not exist, or training cannot run as asked.
    """
    recipe = settle(recipe, execution)
    check_training(recipe, execution)
    planner = Planner(execution)
    pipeline(recipe, resolve_sources(recipe, execution), incumbent_of(planner.store, recipe.name), planner)
    return planner.rows


def plan_totals(rows: list[PlanRow]) -> Forecast | None:
    """The whole run's forecast, or None where no stage that would run has ever run here."""
    known = [row.forecast for row in rows if row.forecast]
    return total(known) if known else None


def plan_table(rows: list[PlanRow]) -> Table:
    """The plan for a terminal."""
    table = Table(box=None, header_style="bold")
    for column in ("stage", "will", "why", "about", "80 % interval"):
        table.add_column(column, justify="right" if column in ("about", "80 % interval") else "left")
    colours = {"cached": "green", "run": "yellow", "maybe": "cyan"}
    for row in rows:
        table.add_row(row.label, f"[{colours[row.status]}]{row.status}", row.reason, *_forecast_cells(row))
    return table


def _forecast_cells(row: PlanRow) -> tuple[str, str]:
    if row.status == "cached":
        return "", ""
    if row.forecast is None:
        return "?", "no earlier run"
    f = row.forecast
    return format_seconds(f.seconds), f"{format_seconds(f.low)} - {format_seconds(f.high)}"


def plan_markdown(rows: list[PlanRow]) -> str:
    """The plan as a Markdown table, for the orchestrator's page."""
    lines = ["| stage | will | why | about | 80 % interval |", "|---|---|---|---:|---:|"]
    lines += [f"| {r.label} | {r.status} | {r.reason} | {' | '.join(_forecast_cells(r))} |" for r in rows]
    return "\n".join(lines)


def plan_json(rows: list[PlanRow]) -> dict[str, Any]:
    """The plan with stable keys, for `--json`."""
    stages = [
        {
            "label": row.label,
            "status": row.status,
            "reason": row.reason,
            "seconds": row.forecast.seconds if row.forecast else None,
            "seconds_low": row.forecast.low if row.forecast else None,
            "seconds_high": row.forecast.high if row.forecast else None,
        }
        for row in rows
    ]
    whole = plan_totals(rows)
    return {"stages": stages, "seconds": whole.seconds if whole else None}
