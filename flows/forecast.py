"""How long a stage will take here, from what it took before: seconds per unit of work, with an interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.store import Manifest

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


def work_of(config: dict[str, Any], input_bytes: float) -> float:
    """The amount of work of a stage call, in units that only have to be comparable within the stage.

    A training stage that states its tokens works through tokens times parameters; any other stage through its input.
    """
    tokens = float(config.get("train_tokens") or 0)
    if not tokens:
        return max(input_bytes, 1.0) * float(config.get("epochs") or 1)
    width, layers = float(config.get("hidden_size", 1)), float(config.get("num_layers", 1))
    return tokens * max(1.0, 12 * layers * width**2)


def forecast(work: float, earlier: Sequence[tuple[float, Manifest]]) -> Forecast | None:
    """Scale what this stage took before; `earlier` pairs the work of each past build with its manifest."""
    rates = [math.log(max(manifest.seconds, 0.01) / past) for past, manifest in earlier if past > 0]
    if not rates or work <= 0:
        return None
    centre = statistics.fmean(rates) + math.log(work)
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
