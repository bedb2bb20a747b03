"""Batches mixed of several kinds of rows in fixed shares, each visited in its own order: a pure function of the step.

So fine-tuning can replay the text that the model was pretrained on, and forgets less of it (arXiv:2403.08763).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.training.data import Batch, Batches, Ints, visit


@dataclass(frozen=True)
class Component:
    """Rows of one kind: what lays them out, how many there are, and what they are to the mixture.

    name: of its figures
    batches: lays out rows, all components in the same width; the step is nothing to it
    count: rows in all
    share: of the rows of each step, 0 to 1; of the first component, which takes what the others leave, it is not read
    weight: factor on the loss of its labels
    """

    name: str
    batches: Batches
    count: int
    share: float = 0.0
    weight: float = 1.0


class MixedBatches:
    """Steps of `rows_per_batch` rows, of which each component has its share on average, to within one row at any time.

    Item i is row i of the first component, then come the rows of the second, and so on.
    """

    def __init__(self, components: Sequence[Component], rows_per_batch: int, seed: int) -> None:
        self.components, self._rows_per_batch, self._seed = tuple(components), rows_per_batch, seed
        self.offsets = np.cumsum([0, *(component.count for component in components)])
        assert sum(component.share for component in components[1:]) < 1, "nothing is left for the first component"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the components: the sources of what is learnt."""
        return tuple(component.name for component in self.components)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the components: the factors on their loss."""
        return tuple(component.weight for component in self.components)

    def _taken(self, step: int) -> Ints:
        """(components,): rows that each has given before `step`."""
        rows = step * self._rows_per_batch
        others = [int(rows * component.share) for component in self.components[1:]]
        return np.array([rows - sum(others), *others], dtype=np.int64)

    def items(self, step: int) -> Ints:
        before, after = self._taken(step), self._taken(step + 1)
        drawn = [
            # A seed of its own, or two of one length would go through their rows in step.
            offset + visit(self._seed + (number << 32), int(start), int(stop - start), component.count)
            for number, (component, offset, start, stop) in enumerate(zip(self.components, self.offsets, before, after))
            if stop > start
        ]
        return np.concatenate(drawn)

    def _of(self, items: Ints) -> list[tuple[int, NDArray[np.bool_], Ints]]:
        """For each component that these items are of: its number, which of them, and its own numbers of those."""
        owners = np.searchsorted(self.offsets, items, side="right") - 1
        return [(int(k), owners == k, items[owners == k] - self.offsets[k]) for k in np.unique(owners)]

    def batch(self, items: Ints, step: int) -> Batch:
        parts = [(number, here, self.components[number].batches.batch(own, 0)) for number, here, own in self._of(items)]
        shape = (len(items), parts[0][2].input_ids.shape[1])
        inputs, labels, positions, documents, used = (np.zeros(shape, dtype=np.int64) for _ in range(5))
        sizes = np.zeros(len(items), dtype=np.float32)
        owners, by_source = (
            np.zeros(shape, dtype=np.int64),
            np.zeros((len(items), len(self.components)), dtype=np.float32),
        )
        for number, here, part in parts:
            inputs[here], labels[here], sizes[here] = part.input_ids, part.labels, part.label_bytes
            positions[here] = np.arange(shape[1]) if part.position_ids is None else part.position_ids
            documents[here] = 0 if part.document_ids is None else part.document_ids
            used[here] = 0 if part.sequence_ids is None else part.sequence_ids  # -1 in padding
            owners[here] = number
            by_source[here, number] = part.label_bytes
        return Batch(inputs, labels, sizes, positions, documents, used, source_ids=owners, source_bytes=by_source)

    def weight(self, items: Ints) -> float:
        found = [self.components[k].weight * self.components[k].batches.tokens(own) for k, _, own in self._of(items)]
        return float(max(sum(found), 1))

    def tokens(self, items: Ints) -> int:
        return sum(self.components[k].batches.tokens(own) for k, _, own in self._of(items))

    @property
    def item_tokens(self) -> int:
        return max(component.batches.item_tokens for component in self.components)
