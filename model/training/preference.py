"""The losses of direct preference optimisation (arXiv:2305.18290) and its relatives, under the names of TRL 1.16.

A loss is a function of the pairs' rewards, entered in `PREFERENCE_LOSSES`: that makes it a value of `dpo.loss_type`,
in the form too, and the tests run it. torch is imported by the functions alone, since forms need the names at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairLogProbs:
    """Summed log-probabilities of chosen and rejected answers, each (pairs,), and the answers' lengths in tokens."""

    chosen: "Tensor"
    rejected: "Tensor"
    reference_chosen: "Tensor"
    reference_rejected: "Tensor"
    chosen_tokens: "Tensor"
    rejected_tokens: "Tensor"


@dataclass(frozen=True)
class Rewards:
    """What a loss sees: implicit rewards `beta * log(policy / reference)` of both answers, each (pairs,).

    beta: strength of the KL penalty towards the reference. smoothing: the chance that a label is flipped.
    """

    chosen: "Tensor"
    rejected: "Tensor"
    chosen_tokens: "Tensor"
    rejected_tokens: "Tensor"
    beta: float
    smoothing: float

    @property
    def margin(self) -> "Tensor":
        """By how much the chosen answer's reward is higher."""
        return self.chosen - self.rejected

    @property
    def margin_per_token(self) -> "Tensor":
        """The same of rewards divided by the answers' lengths."""
        chosen = self.chosen / self.chosen_tokens.clamp(min=1)
        return chosen - self.rejected / self.rejected_tokens.clamp(min=1)


PreferenceLoss = Callable[[Rewards], "Tensor"]
"""The loss of each pair: (pairs,)."""


def log_sigmoid(x: "Tensor") -> "Tensor":
    """log(1 / (1 + e^-x)), without overflow."""
    import torch.nn.functional as F

    return F.logsigmoid(x)


def sigmoid(rewards: Rewards) -> "Tensor":
    """DPO itself: the Bradley-Terry likelihood of the preference."""
    return -log_sigmoid(rewards.margin)


def hinge(rewards: Rewards) -> "Tensor":
    """SLiC's, on DPO's rewards (arXiv:2305.10425)."""
    return (1 - rewards.margin).relu()


def ipo(rewards: Rewards) -> "Tensor":
    """arXiv:2310.12036, eq. 17, by the mean over tokens as its authors advise."""
    square: Tensor = (rewards.margin_per_token / rewards.beta - 1 / (2 * rewards.beta)) ** 2
    return square


def robust(rewards: Rewards) -> "Tensor":
    """Unbiased where a share `smoothing` of the labels is flipped (arXiv:2403.00409)."""
    margin, smoothing = rewards.margin, rewards.smoothing
    good, bad = log_sigmoid(margin), log_sigmoid(-margin)
    return (smoothing * bad - (1 - smoothing) * good) / (1 - 2 * smoothing)


def exo_pair(rewards: Rewards) -> "Tensor":
    """Reverse KL to smoothed labels (arXiv:2402.00856, eq. 16)."""
    margin, smoothing = rewards.margin, rewards.smoothing
    good, bad = log_sigmoid(margin), log_sigmoid(-margin)
    return good.exp() * (good - math.log1p(-smoothing)) + bad.exp() * (bad - math.log(smoothing))


def nca_pair(rewards: Rewards) -> "Tensor":
    """Noise-contrastive alignment (arXiv:2402.05369): also keeps the chosen answer likely."""
    chosen, rejected = rewards.chosen, rewards.rejected
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def bco_pair(rewards: Rewards) -> "Tensor":
    """Each answer classified by itself (arXiv:2404.04656)."""
    return -log_sigmoid(rewards.chosen) - log_sigmoid(-rewards.rejected)


def sppo_hard(rewards: Rewards) -> "Tensor":
    """Self-play with hard win rates (arXiv:2405.00675)."""
    beta = rewards.beta
    squares: Tensor = ((rewards.chosen - 0.5) / beta) ** 2 + ((rewards.rejected + 0.5) / beta) ** 2
    return squares


def apo_zero(rewards: Rewards) -> "Tensor":
    """Chosen answers up, rejected ones down (arXiv:2408.06266, eq. 7)."""
    return 1 - rewards.chosen.sigmoid() + rewards.rejected.sigmoid()


def apo_down(rewards: Rewards) -> "Tensor":
    """Both down, rejected ones further: for a policy that is better than its data (arXiv:2408.06266, eq. 8)."""
    return rewards.chosen.sigmoid() + 1 - rewards.margin.sigmoid()


def discopop(rewards: Rewards) -> "Tensor":
    """The log-ratio modulated loss that a search found (arXiv:2406.08414, eq. 5, with its temperature of 0.05)."""
    margin = rewards.margin
    blend = (margin / 0.05).sigmoid()
    return -log_sigmoid(margin) * (1 - blend) + (-margin).exp() * blend


def sigmoid_norm(rewards: Rewards) -> "Tensor":
    """DPO's, length-normalised (Tülu 3, arXiv:2411.15124)."""
    return -log_sigmoid(rewards.margin_per_token)


PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sigmoid_norm": sigmoid_norm,
}
SMOOTHED_LOSSES = frozenset({"robust", "exo_pair"})
"""Those that look at the label smoothing."""


@dataclass(frozen=True)
class DPOLoss:
    """The loss to minimise (scalar) and what to report; rewards are beta * (policy - reference), each (pairs,)."""

    loss: "Tensor"
    chosen_rewards: "Tensor"
    rejected_rewards: "Tensor"


def dpo_loss(pairs: PairLogProbs, beta: float, loss_type: str = "sigmoid", label_smoothing: float = 0.0) -> DPOLoss:
    """The mean loss of the pairs and their rewards.

    Raises:
        ValueError: an unknown loss, or a number that the loss is not defined for.
    """
    _check(beta, loss_type, label_smoothing)
    chosen = beta * (pairs.chosen - pairs.reference_chosen)
    rejected = beta * (pairs.rejected - pairs.reference_rejected)
    rewards = Rewards(chosen, rejected, pairs.chosen_tokens, pairs.rejected_tokens, beta, label_smoothing)
    losses = PREFERENCE_LOSSES[loss_type](rewards)
    return DPOLoss(losses.mean(), chosen.detach(), rejected.detach())


def _check(beta: float, loss_type: str, label_smoothing: float) -> None:
    if loss_type not in PREFERENCE_LOSSES:
        raise ValueError(f"Unknown DPO loss type {loss_type!r}; choose one of {', '.join(PREFERENCE_LOSSES)}.")
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}.")
    if loss_type == "robust" and not 0 <= label_smoothing < 0.5:
        raise ValueError(f"'robust' needs label_smoothing in [0, 0.5), got {label_smoothing}.")
    if loss_type == "exo_pair" and not 0 < label_smoothing < 1:
        raise ValueError(f"'exo_pair' needs label_smoothing in (0, 1), got {label_smoothing}; TRL suggests 0.001.")
