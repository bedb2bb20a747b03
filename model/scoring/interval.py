"""Is one model better than another, or is it the choice of documents? The paired bootstrap over documents."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "inconclusive"]

_DRAWS_AT_ONCE = 500  # resamples held in memory at a time


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval, in the unit of what was measured."""

    estimate: float
    low: float
    high: float


def paired_difference(
    candidate: Floats, incumbent: Floats, weight: Floats, confidence: float, resamples: int, seed: int
) -> Interval:
    """Sum(candidate - incumbent) / sum(weight), with the percentile interval over resampled documents.

    All (documents,): totals of both models on the same documents, and the documents' sizes (bytes, tokens). Both
    models meet the same resampled documents, so what makes a document hard for both cancels out (Efron and
    Tibshirani 1993, chapter 13; for language models Koehn 2004).
    """
    difference = candidate - incumbent
    estimate = float(difference.sum() / weight.sum())
    ratios = _resampled_ratios(difference, weight, resamples, seed)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


def _resampled_ratios(numerator: Floats, denominator: Floats, resamples: int, seed: int) -> Floats:
    """sum(numerator) / sum(denominator) over documents drawn with replacement: (resamples,)."""
    random = np.random.Generator(np.random.Philox(seed))
    documents = len(numerator)
    found = []
    for start in range(0, resamples, _DRAWS_AT_ONCE):
        size = (min(_DRAWS_AT_ONCE, resamples - start), documents)
        drawn = random.integers(0, documents, size=size)
        # A ratio of sums, so that a document counts by its length.
        found.append(numerator[drawn].sum(1) / denominator[drawn].sum(1))
    return np.concatenate(found)


def proportion(successes: int, trials: int, confidence: float) -> Interval:
    """A share with Wilson's interval (1927), which does not shrink to a point where all trials went one way."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def judge(difference: Interval) -> Verdict:
    """Whether the candidate's figure, of which less is better, is lower for sure, higher for sure, or neither."""
    if difference.high < 0:
        return "better"
    return "worse" if difference.low > 0 else "inconclusive"
