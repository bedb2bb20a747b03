"""Replay: text of pretraining as rows among those of fine-tuning, and how well the model still predicts such text."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from model.training.data import WindowBatches
    from model.training.loop import Validation
    from model.training.mixture import Component, MixedBatches
    from model.training.packing import PackedBatches
    from tasks.tokens.files import Split

ANSWERS, TEXT = "answers", "text"
"""Components of the mixture, as they are called in the names of the sums."""


class ReplayedText:
    """The text of a token folder in rows of one length, with whose loss that of the conversations is mixed.

    Raises:
        ValueError: the training split is shorter than a row.
    """

    def __init__(self, folder: Path, length: int, token_bytes: NDArray[np.float32], endoftext_id: int) -> None:
        self._folder, self._length, self._token_bytes, self._endoftext_id = folder, length, token_bytes, endoftext_id
        self._train = self._rows("train")

    def _rows(self, split: "Split") -> "WindowBatches":
        from model.training.data import Ramp, WindowBatches, plan_steps
        from tasks.tokens.files import read_tokens

        plan = plan_steps(1, Ramp(1, 1), Ramp(self._length, self._length))
        tokens = read_tokens(self._folder, split)
        return WindowBatches(tokens, plan, self._length, 0, self._token_bytes, self._endoftext_id)

    def mix(
        self, conversations: "PackedBatches", share: float, weight: float, rows_per_batch: int, seed: int
    ) -> "MixedBatches":
        """Batches of which `share` are rows of the training text."""
        from model.training.mixture import Component, MixedBatches

        text = Component(TEXT, self._train, self._train.windows, share, weight)
        return MixedBatches((_answers(conversations), text), rows_per_batch, seed)

    def validation(self, conversations: "PackedBatches", max_tokens: int) -> "Validation":
        """Every row of the conversations, and rows spread evenly over the held-out text, as many as `max_tokens` allow.

        Where that is shorter than a row, it is left out.
        """
        from model.training.loop import Validation
        from model.training.mixture import Component, MixedBatches
        from tasks.tokens.files import read_tokens

        items = np.arange(len(conversations.rows), dtype=np.int64)
        if len(read_tokens(self._folder, "validation")) <= self._length:
            return Validation(MixedBatches((_answers(conversations),), 1, 0), items)
        held_out = self._rows("validation")
        count = min(held_out.windows, max(1, max_tokens // self._length))
        spread = len(items) + np.arange(count, dtype=np.int64) * held_out.windows // count
        mixed = MixedBatches((_answers(conversations), Component(TEXT, held_out, held_out.windows)), 1, 0)
        return Validation(mixed, np.concatenate([items, spread]))


def _answers(conversations: "PackedBatches") -> "Component":
    from model.training.mixture import Component

    return Component(ANSWERS, conversations, len(conversations.rows))


def answer_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Nats per token of the assistant, and (in validation) the share of its tokens that were the likeliest.

    With replay also the bits per byte of the text, where what is forgotten shows.
    """
    own = f"/{ANSWERS}" if f"nll/{ANSWERS}" in sums else ""
    labels = max(sums[f"labels{own}"], 1)
    figures = {"loss": sums[f"nll{own}"] / labels}
    if sums[f"correct{own}"]:
        figures["token_accuracy"] = sums[f"correct{own}"] / labels
    if size := sums.get(f"bytes/{TEXT}", 0.0):
        figures["text_bits_per_byte"] = sums[f"nll/{TEXT}"] / math.log(2) / size
    return figures
