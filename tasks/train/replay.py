"""Replay: text of pretraining as rows among those of fine-tuning, and how well the model still predicts such text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from model.training.loop import Validation
    from model.training.mixture import Component
    from model.training.packing import PackedBatches

ANSWERS, TEXT = "answers", "text"
"""Components of the mixture, as they are called in the names of the sums."""


@dataclass(frozen=True)
class ReplayedText:
    """The text of a token folder in rows of one length.

    token_bytes: (vocab,), bytes of text that each id stands for
    """

    folder: Path
    length: int
    token_bytes: NDArray[np.float32]
    endoftext_id: int

    def component(self, share: float, weight: float) -> "Component":
        """Rows of the training text.

        Raises:
            ValueError: it is shorter than a row.
        """
        from model.training.data import WindowBatches, fixed_rows
        from model.training.mixture import Component
        from tasks.tokens.files import read_tokens

        stream, plan = read_tokens(self.folder, "train"), fixed_rows(self.length)
        rows = WindowBatches(stream, plan, self.length, 0, self.token_bytes, self.endoftext_id)
        return Component(TEXT, rows, rows.windows, share, weight)

    def held_out(self, max_tokens: int) -> "tuple[Component, NDArray[np.int64]]":
        """Rows of the held-out text, and which of them to measure: spread evenly, as many as `max_tokens` allow."""
        from model.training.data import WindowBatches, fixed_rows
        from model.training.mixture import Component
        from model.training.packing import PackedBatches, join_sequences
        from tasks.tokens.files import read_tokens

        stream = read_tokens(self.folder, "validation")
        if len(stream) <= self.length:  # one row, which padding fills
            ids = stream.tolist()
            row = PackedBatches(join_sequences([ids], [[True] * len(ids)]), self.length, 1, 0, self.token_bytes)
            return Component(TEXT, row, 1), np.zeros(1, dtype=np.int64)
        rows = WindowBatches(stream, fixed_rows(self.length), self.length, 0, self.token_bytes, self.endoftext_id)
        return Component(TEXT, rows, rows.windows), rows.spread(max_tokens)


def answers(conversations: "PackedBatches") -> "Component":
    """The rows of conversations."""
    from model.training.mixture import Component

    return Component(ANSWERS, conversations, len(conversations.rows))


def validation_of(conversations: "PackedBatches", text: ReplayedText | None, max_tokens: int) -> "Validation":
    """Every row of the conversations, and held-out rows of the text where some is replayed."""
    from model.training.loop import Validation
    from model.training.mixture import MixedBatches

    components, items = [answers(conversations)], [np.arange(len(conversations.rows), dtype=np.int64)]
    if text:
        component, chosen = text.held_out(max_tokens)
        components.append(component)
        items.append(len(conversations.rows) + chosen)
    return Validation(MixedBatches(components, 1, 0), np.concatenate(items))


def answer_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Nats per token of the assistant, and (in validation) the share of its tokens that were the likeliest.

    With replay also the bits per byte of the text, where what is forgotten shows.
    """
    labels = max(sums[f"labels/{ANSWERS}"], 1)
    figures = {"loss": sums[f"nll/{ANSWERS}"] / labels}
    if sums[f"correct/{ANSWERS}"]:
        figures["token_accuracy"] = sums[f"correct/{ANSWERS}"] / labels
    if size := sums.get(f"bytes/{TEXT}", 0.0):
        figures["text_bits_per_byte"] = sums[f"nll/{TEXT}"] / math.log(2) / size
    return figures
