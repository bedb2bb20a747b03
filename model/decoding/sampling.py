"""Which token is next: from logits to a distribution, and seeded draws from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked.

    temperature: of the softmax; 0 is greedy
    top_k: only the k likeliest; 0: all
    top_p: only the likeliest that together have this probability; 1: all
    min_p: only those at least this share as likely as the likeliest (arXiv:2407.01082); 0: all
    repetition_penalty: divides positive logits of tokens that stand in the text already, and multiplies negative ones
        (CTRL, arXiv:1909.05858); 1: none. Greedy picks heed it too.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        possible = self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1
        if not (possible and 0 <= self.min_p <= 1 and self.repetition_penalty > 0):
            raise ValueError(
                "Sampling needs temperature >= 0, top_k >= 0, 0 < top_p <= 1, 0 <= min_p <= 1 and repetition_penalty > "
                f"0, got {self.temperature}, {self.top_k}, {self.top_p}, {self.min_p} and {self.repetition_penalty}."
            )


GREEDY = Sampling()
CONVERSATION = Sampling(temperature=0.7, min_p=0.1, repetition_penalty=1.1)
"""How people are answered unless they say otherwise."""


def penalise(logits: Floats, seen: NDArray[np.int64], penalty: float) -> Floats:
    """The logits with the repetition penalty on the tokens `seen`, as transformers. logits: (vocab,)."""
    out = logits.copy()
    out[seen] = np.where(out[seen] < 0, out[seen] * penalty, out[seen] / penalty)
    return out


def probabilities(logits: Floats, sampling: Sampling) -> NDArray[np.float64]:
    """The distribution that is drawn from: temperature, top-k, top-p (arXiv:1904.09751) and min-p, as transformers.

    logits: (vocab,); of `sampling` the temperature must not be 0.
    """
    scaled = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        kth = np.partition(scaled, -sampling.top_k)[-sampling.top_k]
        scaled = np.where(scaled < kth, -np.inf, scaled)  # ties with the k-th stay, as in transformers
    weights: NDArray[np.float64] = np.exp(scaled - scaled.max())  # no overflow at a low temperature
    weights /= weights.sum()
    if sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")  # equal weights by their ids
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= sampling.top_p]] = 0.0  # the token that crosses the border stays in
        weights /= weights.sum()
    if sampling.min_p:
        weights[weights < sampling.min_p * weights.max()] = 0.0
        weights /= weights.sum()
    return weights


class Sampler:
    """Picks tokens one after the other; the same seed, text and logits give the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.Generator(np.random.Philox(sampling.seed))

    def pick(self, logits: Floats, text: Sequence[int] = ()) -> int:
        """The next token. logits: (vocab,); text: the tokens before it, which the repetition penalty is for."""
        if self._sampling.repetition_penalty != 1:
            logits = penalise(logits, np.unique(np.asarray(text, np.int64)), self._sampling.repetition_penalty)
        if self._sampling.temperature == 0:
            return int(np.argmax(logits))
        weights = np.cumsum(probabilities(logits, self._sampling))
        # Times the last sum, which rounding leaves a little off 1.
        return int(np.searchsorted(weights, self._random.random() * weights[-1], side="right"))
