"""How long a stage will take here, from what it took before: seconds per unit of work, with an interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.mechanism.store import Manifest

# Half the width, in log space, that one earlier run leaves open: a shared machine varies by about 1.6 times.
SINGLE_RUN_LOG_SPREAD = math.log(1.6)
# Two-sided 80 % quantiles of Student's t by degrees of freedom; more than eight are taken as normal.
_T80 = (0.0, 3.08, 1.89, 1.64, 1.53, 1.48, 1.44, 1.41, 1.40)


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
    weights = max(1.0, 12 * layers * width**2)
    steps = float(batches.get("steps") or 0)
    if batches.get("train_tokens") and not steps:
        return Work("token-weights", float(batches["train_tokens"]) * weights)
    if steps:
        size = float(batches.get("batch_tokens") or batches.get("batch_pairs", 1))
        return Work("step-weights", steps * size * weights)
    return Work("bytes", max(input_bytes, 1.0) * float(batches.get("epochs") or 1) * weights)


def forecast(work: Work, earlier: Sequence[tuple[Work, Manifest]]) -> Forecast | None:
    """Scale what this stage took before; `earlier` pairs the work of each past build with its manifest."""
    rates = [math.log(max(m.seconds, 0.01) / past.amount) for past, m in earlier if past.unit == work.unit]
    if not rates:
        return None
    centre = statistics.fmean(rates) + math.log(work.amount)
    if len(rates) == 1:
        spread = SINGLE_RUN_LOG_SPREAD
    else:
        t = _T80[len(rates) - 1] if len(rates) <= len(_T80) else 1.28
        spread = t * statistics.stdev(rates) * math.sqrt(1 + 1 / len(rates))
    return Forecast(math.exp(centre), math.exp(centre - spread), math.exp(centre + spread))


def total(forecasts: Sequence[Forecast]) -> Forecast:
    """The sum of independent forecasts: their errors add in quadrature, on each side."""
    seconds = sum(f.seconds for f in forecasts)
    below = math.sqrt(sum((f.seconds - f.low) ** 2 for f in forecasts))
    above = math.sqrt(sum((f.high - f.seconds) ** 2 for f in forecasts))
    return Forecast(seconds, max(0.0, seconds - below), seconds + above)
